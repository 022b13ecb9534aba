"""Many settings side by side, to choose one: which are asked for, how they are run in turn, what is
kept of them, and what came out, as a table, a curve, a picture and a page.

`run` makes a `Sweep`, which stands in `outcome`; `settings` is what a person asks for, `folder`
what is kept while it runs. How one setting is run and measured stands in `compare`.
"""
