"""Where a U-Net can be cut, and what is swapped in for the length of one call.

`anatomy` finds the layout of a U-Net and makes a `Cut` for each branch; `features` has the parts
that a cut swaps in: the `Tap` that records a deep feature, the `StandIn` that replays one, and the
cache between them. When a call is cut is decided in `running`, what is replayed in `schedules`.
"""
