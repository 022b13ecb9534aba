"""A pipeline's life with a helper, explored by machine; and the stories of what it found."""

import pytest
import torch
from builders.lifecycle import Lifecycle
from builders.marks import mostly_slow
from builders.stories import FAMILIES
from builders.versions_needed import require
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

pytestmark = pytest.mark.filterwarnings(
    # What peft says when a second adapter is loaded.
    "ignore:Already found a `peft_config`:UserWarning",
)


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    # The patches of `torch.compile` are put in place and the code runs as it is: compiling has
    # tests of its own, and takes minutes.
    require("torch", "2.6", "torch.compiler.set_stance")
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def explored(family: str, *, lives: int, length: int) -> int:
    """How many steps were taken."""
    machine = type(f"Lifecycle[{family}]", (Lifecycle,), {"name": family, "steps": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=length,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return machine.steps


# The others live longer, where the test is slow.
@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["ddpm"]))
def test_a_few_lives(family):
    assert explored(family, lives=3, length=12) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_lives(family, record_property):
    steps = explored(family, lives=20, length=25)
    record_property("steps", steps)
    print(f"{family}: {steps} steps")
    assert steps >= 2000 / len(FAMILIES)  # in all of them 2,000; hypothesis may end a life early
