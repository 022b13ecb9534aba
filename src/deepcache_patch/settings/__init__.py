"""What a person's words mean: names and arguments, and whether they fit the pipeline.

`by_name` makes schedules and replays of the words that `DeepCacheHelper`, the command line and the
page take; `fitting` sees whether a schedule fits; `preview` says what a generation will be like.
The schedules themselves are in `schedules` and `learning`.
"""
