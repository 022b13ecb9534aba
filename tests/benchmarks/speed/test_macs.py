"""Multiply-adds are counted exactly, and the paper's counts and its users' are met or are not."""

import pytest
from builders.marks import mostly_slow

from benchmarks.networks.catalogue import build
from benchmarks.networks.loop_pipeline import hand_cut
from benchmarks.speed import macs
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import StandIn
from deepcache_patch.inspection.outline import Outline


def giga(count, digits=2):
    return round(count / 1e9, digits)


@pytest.fixture(scope="module")
def sd15():
    """One for all: nothing stays cut or hooked, as a test below says."""
    return build("sd15", device="meta")


def test_sd15_in_full_is_338_83_without_the_products_of_attention(sd15):
    full = macs.work(sd15)
    assert full == (401_636_720_640, 63_026_135_040, 338_831_618_304)


@pytest.mark.parametrize(("branch", "count"), mostly_slow([(0, 20.72), (1, 57.33), (2, 98.14)], 1))
def test_a_cut_call_of_sd15(branch, count, sd15):
    assert giga(macs.work(sd15, branch).layers) == count


def test_ldm_is_what_the_paper_says():
    counted = macs.counted("ldm4-imagenet")
    assert giga(counted["full"]["layers"]) == 99.86  # published: 99.82
    assert giga(counted["mean_at_5"]["0"]) == 23.52  # published: 23.50


def test_a_network_without_published_counts_has_none():
    assert "published" not in macs.counted("ddpm-cifar10")


def test_the_numbers_of_issue_37_are_wrapped_round_at_32_bits():
    found = {name: giga(count, 4) for name, count in macs.issue_37().items()}
    assert found == {"full": 484.3895, "shallow": 76.0022, "mean_at_5": 156.0782}


def test_the_mean_of_a_step():
    assert macs.mean(1, 5, 10, 5) == 6
    assert macs.mean(2, 4, 3, 1) == 2


def test_it_is_what_the_package_counts_itself(sd15):
    arguments = sd15.call_arguments()
    outline = Outline(sd15.unet)
    whole = dissect(outline.unet).cut(None, StandIn(), {})
    assert outline.multiply_adds(whole, arguments) == macs.work(sd15).operations


def test_a_controlnet_is_counted_along_with_its_unet(sd15):
    both = build("sd15-controlnet", device="meta")
    assert macs.work(both, 0).operations > macs.work(sd15, 0).operations


def test_nothing_stays_cut_or_hooked():
    pipe = build("ddpm-cifar10", device="meta")
    before = macs.work(pipe)
    with hand_cut(pipe, 0, pipe.call_arguments()):
        assert macs.work(pipe).operations < before.operations
    assert macs.work(pipe) == before
    assert not any(module._forward_hooks for module in pipe.unet.modules())
