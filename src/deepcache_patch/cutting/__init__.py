"""Where a U-Net can be cut, and what is swapped in for the length of one call.

`anatomy` counts the skips of a U-Net and makes a `Cut` for each branch; there is one file for each
layout. `cut` swaps the children and puts them back. `features` has what is swapped in: the `Tap`
that records a deep feature and the `StandIn` that replays one; and the cache between them. `answer`
is what a U-Net returned, for calls that run nothing of it; `origin` says whose code a call runs.
When a call is cut is decided in `running`, what is replayed in `schedules`.
"""
