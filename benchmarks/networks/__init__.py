"""The networks whose loops are timed and counted: true configurations, random weights, no download.

`loop_pipeline` is a denoising loop and nothing else; `catalogue` lists the U-Nets of true size,
`toys` has two that do next to nothing. Nothing is measured here. Trained models, whose pictures
say something, are in `models` and come from `train`.
"""
