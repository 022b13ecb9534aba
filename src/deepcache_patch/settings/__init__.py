"""What a person's words mean: names and arguments, and whether they fit the pipeline.

`by_name` makes schedules and replays of the words that `DeepCacheHelper`, the command line and the
page take; `fitting` sees whether a schedule fits; `preview` says what a generation will be like.
`adjustable` has the settings of a helper and how they are changed, `changed` what becomes of all of
them when some are given anew. The schedules themselves are in `schedules` and `learning`.
"""
