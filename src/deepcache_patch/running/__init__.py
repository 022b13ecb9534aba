"""What happens while a pipeline runs with a helper attached, call by call.

`unet` is the heart: it leads each call through. `decision` says whether it runs in full or shallow.
`steps` says where a call stands, `session` keeps what a thread has of its generation, `controlnet`
cuts what feeds the U-Net, `observers` and `offloading` say who needs the layers that a shallow call
leaves out, `attachment` holds all of one pipeline together. What can be cut is known in `cutting`,
which steps are full in `schedules`.
"""
