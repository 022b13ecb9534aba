"""What the helper itself takes: memory, time of its own, and what it leaves behind.

Four commands: `memory`, `overhead`, `scaling` and `lifetime`. They count with `allocations`, bytes
of tensors, and with `calls`, a loop call by call. How much time is saved is in `speed`.
"""
