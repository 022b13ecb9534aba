"""What measures the package, in rooms by what is measured. Nothing here is installed with it.

`fidelity`: how near the pictures come to the plain ones. `speed`: how much faster the loops are.
`cost`: what the helper itself takes. `coverage`: which pipelines it runs on, and what the tests
find. `tables` carries the figures from `results` into README and docs. Below these stand
`networks`, the loops that are timed, and `train`, which made the models in `models`; and the files
beside this one, which all rooms may use. A room knows those below it: only `tables` knows them all.
"""
