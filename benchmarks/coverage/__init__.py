"""How far the promises reach: which pipelines the package runs on, and which faults tests find.

Two commands: `compatibility` runs every pipeline of the tests, `mutation` has mutmut change the
code that decides, with the tests that `judges` names. Which lines the tests reach is told by ``make
coverage``, without anything from here.
"""
