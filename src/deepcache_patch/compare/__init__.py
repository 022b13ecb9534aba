"""A/B comparison: the same results without and with the helper, and how they differ.

`contest` runs each contestant, for a sweep, too, and `run` makes a comparison of it. `outcome` is
what comes out (`Comparison`) and its table, `report` its page, `grid` its picture. `fewer` is about
the third contestant, the plain pipeline with fewer steps.

A sweep and the page of `ui` share `contestant`, what is said of any; `about`, what it was asked for
and how the pipeline was set up; `script`, the Python that does the same again; `saving`
and `pages`, how files are made of it. How one generation is timed and two pictures are measured
stands in `measuring`.
"""
