"""Rivals on a tiny pipeline: which calls run, what they leave behind, and what they answer."""

import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler

from benchmarks.fidelity.rivals import plans, spectrum
from benchmarks.fidelity.rivals.adaptive_diffusion import AdaptiveDiffusion
from benchmarks.fidelity.rivals.easycache import EasyCache
from benchmarks.fidelity.rivals.output_reuse import OutputReuse
from benchmarks.fidelity.rivals.sada import Sada
from benchmarks.fidelity.rivals.skipping import skipping
from benchmarks.fidelity.rivals.spectrum import Spectrum, weights
from benchmarks.fidelity.rivals.zeus import Zeus
from benchmarks.fidelity.work import counting

SD, DDPM = CASES["sd"], CASES["ddpm"]
PLANNED = {Spectrum: plans.spectrum, Zeus: plans.zeus, OutputReuse: plans.uniform}
#: With a threshold that leaves out nothing, and one that leaves out all that it may.
FITTED = {AdaptiveDiffusion: (-1, 1e9), EasyCache: (-1, 1e9), Sada: (-2, 2)}
ALL = [*PLANNED, *FITTED]
STEPS = 10


def named(rival):
    return rival.__name__


def everything(rival):
    return rival(range(STEPS)) if rival in PLANNED else rival(FITTED[rival][0])


def little(rival):
    return rival(PLANNED[rival](STEPS, 6)) if rival in PLANNED else rival(FITTED[rival][1])


def drawn(case, pipe, rival):
    """The pictures, and how many calls ran whole."""
    with skipping(pipe, rival), counting(pipe.unet) as deep:
        return case.run(pipe, steps=STEPS), deep.calls


@pytest.mark.parametrize("rival", mostly_slow(ALL, [OutputReuse, Sada]), ids=named)
def test_with_the_whole_budget_the_picture_is_the_plain_one(rival):
    pipe = SD.load()
    made, calls = drawn(SD, pipe, everything(rival))
    assert calls == STEPS
    assert torch.equal(made, SD.run(pipe, steps=STEPS))


@pytest.mark.parametrize(
    ("rival", "calls"),
    [
        (Spectrum, 6),
        (Zeus, 6),
        (OutputReuse, 6),
        (AdaptiveDiffusion, 5),  # FFFF....F.
        (EasyCache, 3),  # FF.......F
        (Sada, 5),  # FFF...F..F
    ],
    ids=lambda value: named(value) if isinstance(value, type) else str(value),
)
def test_no_more_calls_run_than_the_budget_has(rival, calls):
    made, ran = drawn(SD, SD.load(), little(rival))
    assert ran == calls
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("rival", [Spectrum, Sada], ids=named)
def test_a_model_without_prompts_is_accelerated_too(rival):
    pipe = DDPM.load()
    made, calls = drawn(DDPM, pipe, little(rival))
    assert calls < STEPS
    assert torch.isfinite(made).all()
    assert not torch.equal(made, DDPM.run(pipe, steps=STEPS))


@pytest.mark.parametrize("rival", ALL, ids=named)
def test_the_unet_is_left_as_it_was(rival):
    pipe = SD.load()

    def found():
        return [
            (set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in pipe.unet.modules()
        ]

    before = found()
    with skipping(pipe, little(rival)):
        assert "forward" in vars(pipe.unet)
        SD.run(pipe, steps=STEPS)
    assert found() == before
    with pytest.raises(RuntimeError, match="in the middle"), skipping(pipe, little(rival)):
        raise RuntimeError("in the middle")
    assert found() == before


def test_a_forward_of_somebody_else_comes_back():
    pipe = SD.load()
    own = pipe.unet.forward
    pipe.unet.forward = own
    with skipping(pipe, OutputReuse([0])):
        assert pipe.unet.forward is not own
    assert vars(pipe.unet)["forward"] is own


@pytest.mark.parametrize("scheduler", ["euler", "dpm-multistep", "pndm"])
def test_sada_knows_the_noise_levels_of_schedulers(scheduler):
    made, calls = drawn(SD, with_scheduler(SD.load(), scheduler), little(Sada))
    assert calls < STEPS
    assert torch.isfinite(made).all()


def told(rival, outputs):
    """What a rival answers at each step: an output of its own there, or its forecast."""
    rival.steps = len(outputs)
    answers = []
    for step, value in enumerate(outputs):
        sample, output = torch.zeros(1), torch.tensor([float(value)])
        if rival.full(step, sample):
            rival.observe(step, sample, output)
            answers.append(float(output))
        else:
            answers.append(float(rival.forecast(step, sample)))
    return answers


def test_output_reuse_repeats_the_last():
    assert told(OutputReuse([0, 3]), [1, 2, 3, 4, 5]) == [1, 1, 1, 4, 4]


def test_zeus_forecasts_and_reuses_in_turn():
    assert told(Zeus([0, 1]), [1, 3, 0, 0, 0]) == [1, 3, 5, 3, 5]
    # The step before a full one may have been answered itself: 10 + (10 - 5).
    assert told(Zeus([0, 1, 3]), [1, 3, 0, 10, 0]) == [1, 3, 5, 10, 15]


def test_spectrum_blends_a_fit_of_the_steps_with_a_line(monkeypatch):
    # Step 3 of 10 is at -0.4, where the polynomials are 1, -0.4, -0.68 and 0.944; step 5 is at 0:
    # 1, 0, -1, 0. So the ridge has 1.68 / (2.513536 + 0.1); a line holds the one.
    assert weights([3], 5, 10) == pytest.approx([0.5 * 1.68 / 2.613536 + 0.5])
    monkeypatch.setattr(spectrum, "BLEND", 0.0)
    assert weights([0, 1], 2, 10) == [-1.0, 2.0]
    assert weights([0, 1, 3], 4, 10) == [0.0, -0.5, 1.5]


def test_spectrum_forecasts_what_enters_the_output_convolution():
    pipe = SD.load()
    entered = []
    handle = pipe.unet.conv_norm_out.register_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0])
    )
    drawn(SD, pipe, Spectrum([0, 1, 2, 4]))
    handle.remove()
    assert len(entered) == STEPS
    shares = weights([0, 1, 2], 3, STEPS)
    expected = sum(share * each for share, each in zip(shares, entered[:3], strict=True))
    assert torch.allclose(entered[3], expected, atol=1e-6)


def test_adaptive_diffusion_skips_while_the_latents_move_evenly():
    def plan(places, threshold):
        rival, ran = AdaptiveDiffusion(threshold), []
        for step, place in enumerate(places):
            sample = torch.tensor([float(place)])
            ran.append(rival.full(step, sample))
            if ran[-1]:
                rival.observe(step, sample, sample)
            else:
                rival.forecast(step, sample)
        return "".join("F" if each else "." for each in ran)

    assert plan(range(12), 0.01) == "FFFF....F..."
    # The fifth move is twice as long: |(2 + 1) / 2 - 1| = 0.5, then |(1 + 1) / 2 - 2| / 2 = 0.5.
    assert plan([0, 1, 2, 3, 4, 6, 7, 8, 9], 0.4) == "FFFF.FFF."
    assert plan([0, 1, 2, 3, 4, 6, 7, 8, 9], 0.6) == "FFFF....F"


def test_easycache_adds_the_last_difference_to_the_input():
    rival = EasyCache(1e9)
    rival.steps = 10
    for step, (place, output) in enumerate([(1.0, 5.0), (2.0, 7.0)]):
        sample = torch.tensor([place])
        assert rival.full(step, sample)
        rival.observe(step, sample, torch.tensor([output]))
    sample = torch.tensor([4.0])
    assert not rival.full(2, sample)
    assert rival.forecast(2, sample).tolist() == [9.0]


def test_easycache_adds_up_relative_changes():
    def plan(threshold):
        rival, ran = EasyCache(threshold), []
        rival.steps = 12
        for step in range(12):
            sample = torch.tensor([float(step)])
            ran.append(rival.full(step, sample))
            if ran[-1]:  # outputs of 10, then 11, which move as the input does
                rival.observe(step, sample, torch.tensor([10.0 + step]))
        return "".join("F" if each else "." for each in ran)

    # The change is 1 in 11 after step 1, 1 in 14 after step 4, 1 in 17 after step 7.
    assert plan(0.2) == "FF..F..F...F"
    assert plan(0.0) == "F" * 12
    assert plan(9.0) == "FF.........F"


def test_sada_asks_whether_the_path_bends_back():
    class Pipe:
        scheduler = None

    def runs(places, gradients, threshold=0.0):
        rival = Sada(threshold)
        rival.pipe, rival.steps, rival._sigmas = Pipe(), 10, [9.0 - step for step in range(10)]
        for step, (place, gradient) in enumerate(zip(places, gradients, strict=False)):
            # So that the path, sample · sqrt(1 + sigma²), is at the place.
            sample = torch.tensor([[place / (1 + rival._sigmas[step] ** 2) ** 0.5]])
            full = rival.full(step, sample)
            if step == 3:
                return full
            rival.observe(step, sample, torch.tensor([[gradient]]))
        raise AssertionError

    # Second difference 1 - 2·1 + 2 = 1; extrapolated 0 - (5/6 + 5/6 - 4/3) = -1/3.
    gradients = [2.0, 1.0, 1.0, 0.0]
    assert runs([0, 0, 0, 0.0], gradients)  # 0 lies 1/3 above: with the second difference
    assert not runs([0, 0, 0, -1.0], gradients)  # below: against it, so stable
    assert not runs([0, 0, 0, 0.0], gradients, threshold=2)
    assert runs([0, 0, 0, -1.0], gradients, threshold=-2)
