"""A/B comparison: the same results without and with the helper, and how they differ.

`contest` runs each contestant, for a sweep, too, and `run` makes a comparison of it. `outcome` is
what comes out (`Comparison`), `figures` its table and its words, `report` its page, `grid` its
picture, `paste` the Python that does the same again, `pages` what pages are made with. `fewer` is
about the third contestant, the plain pipeline with fewer steps.
How one generation is timed and two pictures are measured stands in `measuring`.
"""
