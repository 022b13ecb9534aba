"""The pipeline that the U-Net belongs to: its parts, its helper, and whether it makes a call.

`components` finds its U-Nets, what goes with them and its schedulers, and compiles them in place;
`owners` says which helper it holds and whose the patches on its parts are; `callers` says whether a
call of the U-Net comes from the code of a pipeline.

How the calls of the parts are taken over stands in `attachment`. Nothing else of `running` is
needed here.
"""
