"""A/B comparison: the same results without and with the helper, and how they differ.

`run` makes one, `outcome` is what comes out (`Comparison`), `report` its page, `grid` its picture.
How one generation is timed and two pictures are measured stands in `measuring`.
"""
