"""Which steps run in full, and what a shallow one replays.

`plans` has the schedules that plan ahead, `adaptive` the one that decides as it goes; `guide` is
what each of them gives to lead through one generation; `replay` makes the feature of a shallow
step. No U-Net is called here. Plans that are learned from full generations are in `learning`.
"""
