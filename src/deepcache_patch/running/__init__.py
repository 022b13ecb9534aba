"""What happens while a pipeline runs with a helper attached, call by call.

The files are the call itself. `attachment` takes the calls of a pipeline's U-Nets and ControlNets
over and gives them back. `unet` leads a call through its generation, `decision` says whether it
runs in full or shallow, `unet_cuts` cuts the U-Net, and `proof` tries out once whether a U-Net with
somebody's own code can be cut, by a `second_run` that nobody notices. `session` has the state of a
thread's generation, `slots` tells the calls of one step apart, and `tracing` says whether a call is
only written down. What feeds the U-Net: `controlnet` cuts it, `residuals` sees whether what it gave
arrives. `protocol` says what other rooms ask of a helper. `stats` and `example` keep what has
happened.

The folders are what the call asks. `locating`: at which step does it stand? `watching`: who would
notice that layers are left out? `pipeline`: what belongs to the U-Net, and who calls it?

What can be cut is known in `cutting`, which steps are full in `schedules`.
"""
