"""What a person's words mean: arguments, names of schedules, and the plan that they come to.

`arguments` has those of `DeepCacheHelper`, `by_name` the names that the command line and the page
take, `preview` what a generation will be like. The schedules themselves are in `schedules` and
`learning`.
"""
