"""The tables of README and docs, made from the files in `results`. Measures nothing.

``python -m benchmarks.tables`` is `documents`, which rewrites the pages. `fidelity`, `speed`,
`cost` and `coverage` make the tables of what the rooms of these names measured; `markdown` has what
they are written with.
"""
