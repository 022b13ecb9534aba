"""Where a call of the U-Net stands: in which generation, and at which step of it, if of any.

`steps` locates a call, `timelines` finds its entry in a list of timesteps, and `strides` tells a
loop that leaves entries out from calls of none. A person may declare a loop of their own:
`declared` is what they gave, `declared_blocks` finds the calls that are within its `with` block,
and `declared_steps` takes the place of `steps`.

Who makes a call is known in `callers`, which of the calls of one step it is, in `slots`. Nothing
else of `running` is needed here.
"""
