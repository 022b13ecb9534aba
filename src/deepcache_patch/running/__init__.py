"""What happens while a pipeline runs with a helper attached, call by call.

One U-Net: `unet` leads its calls through a generation, `decision` says which run in full and which
shallow, `shallow` cuts them. `steps` tells where a call stands, `session` keeps what a thread
has of its generation, `slots` tells the calls of one step apart, `callers` and `tracing` say what
a call is for, `observers` and `offloading` who needs the layers that a shallow call leaves out;
`proof` runs a cut U-Net unnoticed; `controlnet` cuts what feeds the U-Net. One pipeline:
`components` finds its parts, `attachment` takes their calls over and gives them back, `compiling`
compiles them. One helper: `pause`, and `face`, which says what other rooms ask of it. `stats` and
`example` keep what has happened.

Who watches is found from the top down: `observers` looks at the code of each module that `walk`
finds, `keeping` follows that code to all that it reaches and says whether something can be kept
there, and `bytecode` says what each function on the way reads and writes.

What can be cut is known in `cutting`, which steps are full in `schedules`.
"""
