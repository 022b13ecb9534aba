"""Where a call of the U-Net stands: in which generation, and at which step of it, if of any.

`steps` locates a call, `timelines` finds its entry in a list of timesteps, and `strides` tells a
loop that leaves entries out from calls of none. In loops of a person's own: `told` is what was told
of one, `told_blocks` finds the calls that are within its `with` block, `told_steps` takes the place
of `steps`.

Who makes a call is known in `callers`, which of the calls of one step it is, in `slots`. Nothing
else of `running` is needed here.
"""
