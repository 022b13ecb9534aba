"""What happens while a pipeline runs with a helper attached, call by call.

One call of a U-Net: `unet` leads it through its generation, `decision` says whether it runs in full
or shallow, `unet_cuts` cuts the U-Net, and `proof` tries out once whether a U-Net with somebody's
own code can be cut, by a `second_run` that nobody notices. `session` has the state of a thread's
generation, `slots` tells the calls of one step apart, `callers` and `tracing` say what a call is
for.

Which step a call is of is answered in the folder `locating`.

What feeds the U-Net: `controlnet` cuts it, `residuals` sees whether what it gave arrives.

Who watches the layers that a shallow call leaves out, in the folder `watching`.

One pipeline: `components` finds its parts, `attachment` takes their calls over and gives them back,
`owners` says which helper the pipeline holds and whose its parts are, `compiling` compiles them.
One helper: `pause`, and `protocol`, which says what other rooms ask of it. `stats` and `example`
keep what has happened.

What can be cut is known in `cutting`, which steps are full in `schedules`.
"""
