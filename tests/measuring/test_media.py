"""What is taken out of a pipeline's output, and how sounds are drawn and written."""

from __future__ import annotations

import wave
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcache_patch.measuring.media import Made, Sound, made_by, some_frames


class Pipe:
    """Makes pictures."""

    vocoder = SimpleNamespace(config=SimpleNamespace(sampling_rate=8000))

    def __call__(self, prompt: str = "") -> None: ...


class FramesAsPictures:
    """Makes the frames of one video, and calls them images."""

    def __call__(self, prompt: str = "", video_length: int = 2) -> None: ...


def output(**fields: Any) -> Any:
    return SimpleNamespace(**fields, keys=lambda: fields)


def test_a_picture_is_rounded_to_8_bits() -> None:
    made = made_by(Pipe(), output(images=np.full((1, 2, 3, 3), 0.5, np.float32)), 1)
    assert made.kind == "pictures"
    (picture,) = made.shown()
    assert (picture.size, picture.getpixel((0, 0))) == ((3, 2), (128, 128, 128))


def test_frames_stay_together() -> None:
    made = made_by(Pipe(), output(frames=np.zeros((2, 5, 4, 3, 3), np.float32)), 2)
    assert made.kind == "videos"
    assert [[frame.size for frame in video] for video in made.shown()] == [[(3, 4)] * 5] * 2


def test_pictures_of_a_pipeline_with_a_video_length_are_one_video() -> None:
    made = made_by(FramesAsPictures(), output(images=np.zeros((4, 2, 2, 3))), 1)
    assert (made.kind, made.arrays[0].shape) == ("videos", (4, 2, 2, 3))


def test_sounds_come_with_the_rate_of_the_vocoder() -> None:
    made = made_by(Pipe(), output(audios=np.zeros((2, 16), np.float32)), 2)
    assert (made.kind, made.rate, made.arrays[0].shape) == ("sounds", 8000, (1, 16))
    assert made.shown()[1].rate == 8000


@pytest.mark.parametrize(
    ("parts", "rate"),
    [
        ({"mel": SimpleNamespace(get_sample_rate=lambda: 22050)}, 22050),
        ({"unet": SimpleNamespace(config=SimpleNamespace(sample_rate=48000))}, 48000),
        ({"unet": SimpleNamespace(config=SimpleNamespace(sample_rate=None))}, 16000),
    ],
    ids=["spectrogram", "waveform", "unknown"],
)
def test_the_rate_without_a_vocoder(parts: dict[str, Any], rate: int) -> None:
    made = made_by(SimpleNamespace(**parts), output(audios=np.zeros((1, 2, 16))), 1)
    assert (made.rate, made.arrays[0].shape) == (rate, (2, 16))


def test_what_is_none_of_these_is_named() -> None:
    message = "Pipe returns neither pictures nor videos nor sounds, but text, images: "
    with pytest.raises(TypeError, match=message):
        made_by(Pipe(), output(text=["a"], images=None), 1)


def test_another_number_than_that_of_the_seeds_is_told() -> None:
    with pytest.raises(TypeError, match="Pipe made 1 videos for 2 seeds: give as many seeds"):
        made_by(Pipe(), output(frames=np.zeros((1, 5, 4, 3, 3))), 2)


def test_results_of_several_calls_are_one_after_the_other() -> None:
    first, second = (Made("sounds", (np.full((1, 4), each),), 16000) for each in (1, 2))
    assert [array[0, 0] for array in (first + second).arrays] == [1, 2]
    assert (first + second).rate == 16000


@pytest.mark.parametrize(
    ("length", "places"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (16, [0, 8, 15])]
)
def test_some_frames_are_the_first_the_last_and_one_between(length: int, places: list[int]) -> None:
    video = [Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(length)]
    frames = some_frames(video)
    assert list(frames) == places
    assert [frame.getpixel((0, 0))[0] for frame in frames.values()] == places


def test_a_wav_file_has_the_samples_of_each_channel_and_is_clipped() -> None:
    sound = Sound(np.array([[0.5, 2.0, np.nan], [0.0, -1.0, -3.0]], np.float32), 8000)
    with wave.open(BytesIO(sound.wav())) as file:
        assert file.getparams()[:4] == (2, 2, 8000, 3)
        samples = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2).T
    assert samples.tolist() == [[16384, 32767, 0], [0, -32767, -32767]]


def test_a_waveform_reaches_as_high_as_the_loudest_sample_of_each_column() -> None:
    samples = np.zeros((1, 6400), np.float32)
    samples[0, 3205] = 1.0  # 10 samples for each of 640 columns
    samples[0, 3200] = -0.5
    drawn = np.asarray(Sound(samples, 8000).waveform())
    assert drawn.shape == (200, 640, 3)
    ink = (drawn == (38, 96, 164)).all(-1)
    assert np.flatnonzero(ink[:, 320]).tolist() == list(range(150))  # +1 at the top, -0.5 below
    assert np.flatnonzero(ink[0]).tolist() == [320]
    assert np.flatnonzero(ink[:, 100]).tolist() in ([99], [100], [99, 100])  # silence


def test_the_waveform_of_what_is_too_loud_is_clipped() -> None:
    loud = Sound(np.tile(np.float32([2, -2]), (1, 3200)), 8000)
    ink = (np.asarray(loud.waveform()) == (38, 96, 164)).all(-1)
    assert ink.all()
