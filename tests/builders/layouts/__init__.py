"""Tiny models of every layout that is cut, but for diffusers' two usual U-Nets: see `unets`."""
