"""Other ways to leave out work, each rebuilt from its paper in a file of its own.

`skipping` says what all have in common: for the length of one generation the U-Net's `forward` is
replaced on the instance; a call either runs whole or is answered from what was seen before. Each
has the settings that were published, but for the one that sets its budget: `plans` computes the
plans that are known in advance, `fitting` finds the threshold of those that decide as they go. They
look at the scheduler from outside only. Nothing here is measured or chosen.
"""
