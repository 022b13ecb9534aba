"""A patch is gated, removable in any order, and invisible once it is gone."""

import copy
import inspect
import pickle

import pytest
import wrapt

from deepcache_patch.patch import Patch, is_patched


class Greeter:
    def greet(self, name: str = "you") -> str:
        """Say hello."""
        return f"hello {name}"


def loud(original, args, kwargs):
    return original(*args, **kwargs).upper()


@pytest.fixture
def greeter():
    return Greeter()


def test_calls_go_through_the_wrapper_until_it_is_removed(greeter):
    patch = Patch(greeter, "greet", greeter.greet, loud)
    patch.install()
    assert greeter.greet("ann") == "HELLO ANN"
    patch.remove()
    assert greeter.greet("ann") == "hello ann"


def test_absence_is_restored(greeter):
    patch = Patch(greeter, "greet", greeter.greet, loud)
    patch.install()
    assert list(vars(greeter)) == ["greet"]
    patch.remove()
    assert vars(greeter) == {}


def test_a_value_that_was_there_is_restored(greeter):
    def own():
        return "hi"

    greeter.greet = own
    patch = Patch(greeter, "greet", own, loud)
    patch.install()
    assert greeter.greet() == "HI"
    patch.remove()
    assert vars(greeter) == {"greet": own}


def test_install_and_remove_are_idempotent(greeter):
    patch = Patch(greeter, "greet", greeter.greet, loud)
    patch.remove()
    patch.install()
    patch.install()
    assert patch.installed
    assert greeter.greet() == "HELLO YOU"
    patch.remove()
    patch.remove()
    assert not patch.installed
    assert vars(greeter) == {}
    patch.install()
    assert greeter.greet() == "HELLO YOU"


def test_removed_under_another_wrapper_it_passes_calls_through(greeter):
    patch = Patch(greeter, "greet", greeter.greet, loud)
    patch.install()
    theirs = wrapt.FunctionWrapper(
        greeter.greet, lambda wrapped, _, args, kwargs: f"<{wrapped(*args, **kwargs)}>"
    )
    greeter.greet = theirs
    assert greeter.greet() == "<HELLO YOU>"
    assert not patch.installed
    patch.remove()
    assert greeter.greet is theirs
    assert greeter.greet() == "<hello you>"


def test_signature_and_docstring_are_those_of_the_original(greeter):
    signature, doc = inspect.signature(greeter.greet), greeter.greet.__doc__
    Patch(greeter, "greet", greeter.greet, loud).install()
    assert inspect.signature(greeter.greet) == signature
    assert greeter.greet.__doc__ == doc


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_the_wrapper_is_a_copy_of_the_original(greeter, duplicate):
    # wrapt's own proxies raise NotImplementedError, so a copied pipeline would, too.
    Patch(greeter, "greet", greeter.greet, loud).install()
    duplicated = duplicate(greeter.greet)
    assert not isinstance(duplicated, wrapt.FunctionWrapper)
    assert duplicated() == "hello you"


def test_a_patch_can_be_recognised(greeter):
    patch = Patch(greeter, "greet", greeter.greet, loud)
    assert not is_patched(greeter, "greet")
    patch.install()
    assert is_patched(greeter, "greet")
    patch.remove()
    assert not is_patched(greeter, "greet")
