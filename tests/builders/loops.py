"""A denoising loop written by hand over a bare U-Net, and which of its steps ran in full."""

import torch
from conftest import counted_calls

from builders.unets import inputs2d_condition


class Written:
    """A schedule of somebody else's: any object with `plan`."""

    def __init__(self, *entries):
        self.entries = entries

    def plan(self, num_steps):
        return list(self.entries)


def loop(unet, inputs=inputs2d_condition, steps=7, timesteps=None, **options):
    """A hand-written denoising loop: the sample is moved along the output at every step."""
    arguments = inputs(**options)
    timesteps = torch.arange(steps, 0, -1) * 100 if timesteps is None else timesteps
    with torch.no_grad():
        for timestep in timesteps:
            output = unet(**(arguments | {"timestep": timestep})).sample
            arguments["sample"] = (
                arguments["sample"] - 0.1 * output[:, : arguments["sample"].shape[1]]
            )
    return arguments["sample"]


def kinds_of_steps(unet, steps=7, timesteps=None):
    """Which steps of a loop ran the middle block, e.g. "FssFssF"."""
    timesteps = torch.arange(steps, 0, -1) * 100 if timesteps is None else timesteps
    kinds = ""
    with torch.no_grad():
        for timestep in timesteps:
            with counted_calls(unet) as calls:
                unet(**(inputs2d_condition() | {"timestep": timestep}))
            kinds += "F" if calls["mid_block"] else "s"
    return kinds


def held_bytes(helper):
    """The bytes that a helper of one U-Net holds now."""
    return sum(session.cache.nbytes for session in helper._attachment.unets[0]._sessions)


def timesteps_of(steps):
    """A list of so many timesteps, in memory of its own."""
    return torch.arange(steps, 0, -1) * 100


class Loop:
    """Calls of a U-Net step by step: which ran in full, and what each gave."""

    def __init__(self, unet, inputs=None):
        self.unet, self.kinds, self.outputs = unet, [], []
        self.inputs = inputs or inputs2d_condition()

    def step(self, timestep, *calls):
        with torch.no_grad():
            for number, given in enumerate(calls):
                with counted_calls(self.unet) as ran:
                    arguments = self.inputs | given | {"timestep": timestep}
                    self.outputs.append(self.unet(**arguments).sample)
                self.kinds += [" "] if number == 0 and self.kinds else []
                self.kinds.append("F" if ran["mid_block"] else "s")

    def run(self, steps):
        """A list of calls for each step; all at once, so that what they are given stays."""
        for timestep, calls in zip(timesteps_of(len(steps)), steps, strict=True):
            self.step(timestep, *calls)
        return "".join(self.kinds)
