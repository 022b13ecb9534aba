"""A/B comparison: the same results without and with the helper, and how they differ.

`run` makes one, of the runs of a `contest`, which a sweep is made of, too; `outcome` is what comes out (`Comparison`), `figures` its table, `report` its page,
`grid` its picture. `fewer` is about the third contestant, the plain pipeline with fewer steps.
How one generation is timed and two pictures are measured stands in `measuring`.
"""
