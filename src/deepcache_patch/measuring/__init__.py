"""One generation seen from outside: run through the pipeline's own call, timed, and measured.

`generation` runs it, `loop_clock` times its loop, `speed` times two in turn, `media` takes out what
was made, `similarity` compares two of them, `environment` says on what machine, `writing` keeps
files whole, and figures such as JSON can have. Nothing here knows a helper; the A/B
comparison is in `compare`.
"""
