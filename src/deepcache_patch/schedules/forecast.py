"""The U-Net's output, forecast from its last full outputs, as a multistep solver would.

Only arithmetic on samples and outputs; the scheduler is looked at once, and never changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from ..cutting.features import Recorded
from .noise import noise_levels

#: The variable in which the denoised sample goes on in a line: sigma to this power. In a variable
#: that is flatter under noise, such as ln(sigma), the whole slope is too much in a chain.
_POWER: Final = 2.0

#: ln(sigma) beyond which noise says nothing any more of what is under it.
_HIGHEST: Final = 5.0


class Generation(Protocol):
    """What is known of a generation; `Context` is one."""

    @property
    def scheduler(self) -> Any: ...  # noqa: D102

    @property
    def timesteps(self) -> tuple[float, ...] | None: ...  # noqa: D102

    @property
    def is_own(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Forecast:
    """Forecasts outputs of one generation.

    The U-Net's input is taken to be sqrt(1 - s²)·x0 + s·noise with s² = sigma² / (1 + sigma²): that
    of every scheduler with `alphas_cumprod`. From a full step's input and output follows x0; that
    of a shallow step lies on the line through those of the last two full steps in sigma², since x0
    settles while the noise falls; from it and the shallow step's own input follows the output.

    Attributes:
        levels: ln(sigma) of each step.
        prediction: What the output means: "epsilon", "v_prediction" or "sample".
    """

    levels: tuple[float, ...]
    prediction: str

    @classmethod
    def of(cls, generation: Generation) -> "Forecast | None":
        """For a generation; `None` where the scheduler does not say what an output means."""
        scheduler, timesteps = generation.scheduler, generation.timesteps
        config = getattr(scheduler, "config", {})
        prediction = config.get("prediction_type")
        known = isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor)
        if not known or prediction not in ("epsilon", "v_prediction", "sample") or not timesteps:
            return None
        levels = noise_levels(scheduler, timesteps, is_own=generation.is_own)
        if levels is None or (prediction == "epsilon" and max(levels) > _HIGHEST):
            return None
        return cls(levels, prediction)

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The output of a step.

        Args:
            step: Which.
            recorded: Full outputs with their samples, the newest first; one or two.
            sample: The step's input. Where it has more channels than the output, the first are
                denoised and the others a condition; where fewer, what the output has beyond them
                is the newest's. Channels that do not change from step to step are no sample.
        """
        newest = recorded[0]
        output = newest.feature
        place = _channels(sample, output)
        if newest.sample is None or place is None:
            return output
        count = min(sample.shape[place], output.shape[place])
        x = sample.narrow(place, 0, count)
        denoised = [self._denoised(each, place, count) for each in recorded]
        forecast = denoised[0]
        if len(denoised) > 1:
            weight = self._slope(step, newest.step, recorded[1].step)
            forecast = torch.lerp(denoised[1], denoised[0], 1 + weight)
        alpha, noise = self._parts(step)
        made = x.float()
        if self.prediction == "epsilon":
            made = (made - alpha * forecast) / noise
        elif self.prediction == "v_prediction":
            made = (alpha * made - forecast) / noise
        else:
            made = forecast
        made = made.to(output.dtype)
        if sample.shape == output.shape:
            return made
        kept = output.narrow(place, 0, count)
        others = [each for each in range(x.ndim) if each != place]
        moving = (x != newest.sample.narrow(place, 0, count)).sum(others, keepdim=True) > 0
        made = torch.where(moving, made, kept)
        rest = output.narrow(place, count, output.shape[place] - count)
        return torch.cat([made, rest], dim=place)

    def _denoised(self, recorded: Recorded, place: int, count: int) -> torch.Tensor:
        """x0 of a full step, in float32."""
        assert recorded.sample is not None
        alpha, noise = self._parts(recorded.step)
        x = recorded.sample.narrow(place, 0, count).float()
        output = recorded.feature.narrow(place, 0, count).float()
        if self.prediction == "epsilon":
            return (x - noise * output) / alpha
        return alpha * x - noise * output if self.prediction == "v_prediction" else output

    def _parts(self, step: int) -> tuple[float, float]:
        """How much of the data and of the noise is in the input of a step."""
        sigma = math.exp(self.levels[step])
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)

    def _slope(self, step: int, newest: int, older: int) -> float:
        """How far to go beyond the newest, in units of what lies between the two."""
        ahead = _POWER * (self.levels[newest] - self.levels[step])
        behind = _POWER * (self.levels[older] - self.levels[newest])
        if (
            behind <= 0 or ahead <= 0
        ):  # noise that does not fall, as in RePaint or the pairs of Heun's method
            return 0.0
        return math.expm1(-ahead) / math.expm1(behind) * -1


def _channels(sample: torch.Tensor, output: torch.Tensor) -> int | None:
    """Which dimension has the channels; `None` if the two have not enough in common."""
    if sample.ndim != output.ndim:
        return None
    differ = [
        place
        for place, sizes in enumerate(zip(sample.shape, output.shape, strict=True))
        if len(set(sizes)) > 1
    ]
    return None if len(differ) > 1 else (differ or [1])[0]
