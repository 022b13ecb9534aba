"""How much faster the denoising loop of each network is, beside the most that is possible.

``python -m benchmarks.speed`` is `run`; `race` times loops in turns, `contestants` says who takes
part, `tgate_tomesd` has two packages that save other work. `macs`, a command of its own, counts the
work of a call. What the helper costs in time of its own and in memory is in `cost`, what becomes of
the pictures in `fidelity`.
"""
