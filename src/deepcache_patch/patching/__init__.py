"""How a module's call is taken over and given back. Knows nothing of diffusion.

`CallPatch` in `call` is what the rest uses: it goes round a module's call, outside of whatever
compiles the module. `patch` is the removable wrapper below it, `wrappers` the modules that stand
round another one. What a patched call does is no business of this folder.
"""
