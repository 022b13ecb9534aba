"""Which steps run in full, and what a shallow one replays. No U-Net is called here.

The schedules: `noise_aware` has the default, `plans` those that count steps, `adaptive` the one
that decides as it goes. Those that are learned are in `learning`, by what `fit` says of full
generations. `window` is what runs in full whatever they say, `placing` finds where full steps cost
the least, and `remarks` says what to know of a plan.

One generation: `context` is what is known of it, `guide` what each schedule gives to lead through
it. What a shallow step gets is made by `replay`, and above the output by `forecast`. Both go by the
noise levels that `noise` reads from the scheduler. `transfer` gets a number off the device without
waiting. `tables` is here because a plan shows itself as one in notebooks; other rooms use it, too.
"""
