"""Bytes that are counted: of arithmetic a reader can do, and of networks, counted and run."""

import pytest
import torch

from benchmarks.cost import memory
from benchmarks.cost.allocations import FusedAttention, LiveBytes, storage_bytes
from benchmarks.networks.catalogue import build
from benchmarks.networks.toys import tiny

DEVICES = ("cpu", "meta")


@pytest.mark.parametrize("device", DEVICES)
def test_storages_count_from_when_they_are_made_until_they_are_freed(device):
    older = torch.zeros(100, device=device)
    with LiveBytes(torch.device(device)) as meter:
        view = older[:50]
        assert meter.now == 0
        numbers = older + 1
        assert meter.now == 400
        part = numbers[:10].view(2, 5)
        del numbers, view, older
        assert meter.now == 400  # the part is a view of it
        doubles = part.double()
        assert (meter.now, meter.peak) == (480, 480)
        del part
        assert (meter.now, meter.peak) == (80, 480)
        del doubles
        assert (meter.now, meter.peak) == (0, 480)


def test_other_devices_do_not_count():
    with LiveBytes(torch.device("cpu")) as meter:
        empty = torch.empty(100, device="meta")
        assert meter.now == 0
        assert empty.untyped_storage().nbytes() == 400


def test_shared_memory_counts_once():
    numbers = torch.zeros(10)
    assert storage_bytes({"all": numbers, "more": [numbers[:5], (numbers,)], "name": 1}) == 40


def test_attention_without_values_takes_no_more_than_its_output():
    query, value = torch.empty(1, 2, 64, 8, device="meta"), torch.empty(1, 2, 4, 16, device="meta")
    with FusedAttention(), LiveBytes(torch.device("meta")) as meter:
        output = torch.nn.functional.scaled_dot_product_attention(query, query[:, :, :4], value)
    assert output.shape == (1, 2, 64, 16)
    assert meter.peak == 2 * 64 * 16 * 4


def test_a_network_without_values_keeps_what_a_real_one_keeps():
    found = [memory.row(tiny(device, torch.float32), 3)["contestants"] for device in DEVICES]
    assert found[0] == found[1]
    output = 3 * 3 * 8 * 8 * 4
    assert found[0]["default"]["cache"] == found[0]["default"]["kept"] == 3 * 2 * output
    feature = 3 * 8 * 8 * 8 * 4
    for name, features in (("reuse", 1), ("extrapolate", 2)):
        its = found[0][name]
        assert its["cache"] == its["kept"] == features * feature
        assert its["peak"] >= its["kept"]
    assert found[0]["deepcache"]["kept"] > 2 * feature


@pytest.mark.slow
def test_bytes_of_sd15_at_512_pixels_in_half_precision(monkeypatch):
    monkeypatch.setattr(memory, "STEPS", 4)  # full, shallow, full, shallow
    row = memory.row(build("sd15", device="meta", dtype=torch.float16), 1)
    assert (row["batch"], row["latents"], row["dtype"]) == (2, [64, 64], "float16")
    feature = 2 * 320 * 64 * 64 * 2
    found = row["contestants"]
    for name, features in (("reuse", 1), ("extrapolate", 2)):
        assert found[name]["cache"] == found[name]["kept"] == features * feature
    assert found["deepcache"]["cache"] == found["deepcache"]["kept"]
    assert found["deepcache"]["kept"] > 20 * found["reuse"]["kept"]


def test_a_failure_of_ours_is_none_of_the_results(monkeypatch):
    monkeypatch.setattr(memory, "INTERVAL", 0)
    with pytest.raises(ValueError, match="interval"):
        memory.row(tiny("meta", torch.float32), 1)
