"""The tables of published papers, made by anyone who has a GPU: speed, PSNR, LPIPS and FID.

``python -m benchmarks.published`` is `run`; `samplers` knows what the papers call them,
`contestants` says who takes part, `gallery` keeps pictures and times of a run that may be broken
off, `metrics` measures them and `report` writes them down. The models are not this project's own.
"""
