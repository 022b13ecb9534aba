"""Who notices that a shallow call leaves layers out: what may count there, keep, or move weights.

`observers` looks at the code of each module that `walk` finds, `stateful` follows that code to all
that it reaches and says whether something can be kept there, and `bytecode` says what each function
on the way reads and writes. `offloading` says who moves weights about.

What is done about it stands in `unet_cuts`, `decision` and `proof`. Nothing else of `running` is
needed here.
"""
