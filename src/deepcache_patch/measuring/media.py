"""What a pipeline makes: pictures, videos or sounds. Taken out of its output as arrays, and turned
into what can be looked at or listened to.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from .generation import accepted_arguments, as_floats

Kind: TypeAlias = Literal["pictures", "videos", "sounds"]

#: Background and ink of a waveform, and the line of silence.
_PAPER, _INK, _SILENCE = (243, 245, 248), (38, 96, 164), (206, 212, 220)
_WAVEFORM_SIZE = (640, 200)


@dataclass(frozen=True, eq=False)
class Sound:
    """One sound.

    Attributes:
        samples: (channels, samples), float32, nominally in -1..1.
        rate: Samples in a second.
    """

    samples: np.ndarray
    rate: int

    def wav(self) -> bytes:
        """Returns it as a WAV file of 16 bits; what is louder than 1 is clipped."""
        loud = np.nan_to_num(self.samples).clip(-1, 1) * 32767
        file = BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(len(self.samples))
            writer.setsampwidth(2)
            writer.setframerate(self.rate)
            writer.writeframes(loud.round().astype("<i2").T.tobytes())
        return file.getvalue()

    def waveform(self) -> Image.Image:
        """Draws, for each column of pixels, from the lowest to the highest sample in it."""
        width, height = _WAVEFORM_SIZE
        picture = Image.new("RGB", _WAVEFORM_SIZE, _PAPER)
        draw = ImageDraw.Draw(picture)
        middle = (height - 1) / 2
        draw.line((0, middle, width, middle), _SILENCE)
        mono = np.nan_to_num(self.samples).mean(0)
        ends = np.linspace(0, len(mono), width + 1).round().astype(int)
        for column, (start, end) in enumerate(pairwise(ends)):
            part = mono[max(0, start - 1) : max(end, start + 1)].clip(-1, 1)  # joined to the last
            if part.size:
                low, high = middle - part.max() * middle, middle - part.min() * middle
                draw.line((column, low, column, high), _INK)
        return picture


#: One result, as a person sees it: a picture, the frames of a video, or a sound.
Result: TypeAlias = Image.Image | tuple[Image.Image, ...] | Sound


@dataclass(frozen=True, eq=False)
class Made:
    """The results of one or more calls.

    Attributes:
        kind: What they are.
        arrays: For each picture (height, width, channels) and for each video
            (frames, height, width, channels), float32 in 0..1; for each sound (channels, samples),
            float32.
        rate: The samples in a second of sounds; else 0.
    """

    kind: Kind
    arrays: tuple[np.ndarray, ...]
    rate: int = 0

    def __add__(self, other: Made) -> Made:
        return Made(self.kind, self.arrays + other.arrays, self.rate)

    def shown(self) -> tuple[Result, ...]:
        """Returns them as PIL pictures, rounded to 8 bits, as tuples of them, or as sounds."""
        if self.kind == "sounds":
            return tuple(Sound(array, self.rate) for array in self.arrays)
        if self.kind == "videos":
            return tuple(tuple(to_pil(frame) for frame in video) for video in self.arrays)
        return tuple(to_pil(array) for array in self.arrays)


def made_by(pipe: Any, output: Any, count: int) -> Made:
    """Takes the results out of what the pipeline returned.

    Raises:
        TypeError: There are neither pictures nor videos nor sounds, or not `count` of them.
    """
    name = type(pipe).__name__
    made = _made_by(pipe, output)
    if made is None:
        fields = ", ".join(getattr(output, "keys", list)()) or type(output).__name__
        raise TypeError(
            f"{name} returns neither pictures nor videos nor sounds, but {fields}: there is "
            "nothing to compare"
        )
    if len(made.arrays) != count:  # the batch of an input picture, say, decides instead
        raise TypeError(
            f"{name} made {len(made.arrays)} {made.kind} for {count} seeds: give as many seeds as "
            f"its inputs make {made.kind}"
        )
    return made


def some_frames(video: Sequence[Image.Image]) -> dict[int, Image.Image]:
    """At most three frames, evenly spaced, the first and the last among them, by their number."""
    places = np.linspace(0, len(video) - 1, min(3, len(video))).round().astype(int)
    return {int(place): video[place] for place in places}


def kind_of(results: Sequence[Result]) -> Kind:
    """What they are: "pictures", "videos" or "sounds"."""
    if isinstance(results[0], Sound):
        return "sounds"
    return "pictures" if isinstance(results[0], Image.Image) else "videos"


def still(result: Result) -> Image.Image:
    """One picture that stands for a result: itself, the middle frame, or the waveform."""
    if isinstance(result, Sound):
        return result.waveform()
    return result if isinstance(result, Image.Image) else result[len(result) // 2]


def small(result: Result, longest: int) -> Image.Image:
    """The picture of `still`, with at most so many pixels on its longer side."""
    picture = still(result).copy()
    picture.thumbnail((longest, longest))
    return picture


def _made_by(pipe: Any, output: Any) -> Made | None:
    sounds, frames = getattr(output, "audios", None), getattr(output, "frames", None)
    if sounds is not None:
        arrays = (np.asarray(sound, np.float32) for sound in sounds)
        return Made("sounds", tuple(np.atleast_2d(array) for array in arrays), _rate(pipe))
    if frames is not None:
        return Made("videos", tuple(as_floats(video) for video in frames))
    pictures = getattr(output, "images", None)
    if pictures is None:
        return None
    if "video_length" in accepted_arguments(pipe):  # the frames of one video
        return Made("videos", (as_floats(pictures),))
    return Made("pictures", tuple(as_floats(pictures)))


def _rate(pipe: Any) -> int:
    """Samples in a second, from whichever part of the pipeline knows."""
    mel = getattr(pipe, "mel", None)
    if mel is not None:
        return int(mel.get_sample_rate())
    vocoder = getattr(pipe, "vocoder", None)
    if vocoder is not None:
        return int(vocoder.config.sampling_rate)
    return int(getattr(pipe.unet.config, "sample_rate", None) or 16000)


def to_pil(floats: np.ndarray) -> Image.Image:
    """Rounds a float picture to 8 bits, in RGB."""
    eight_bits = (np.nan_to_num(floats) * 255).round().astype(np.uint8)
    is_grey = floats.shape[-1] == 1
    return Image.fromarray(eight_bits.squeeze(-1) if is_grey else eight_bits).convert("RGB")
