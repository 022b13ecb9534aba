"""A patch is gated, removable in any order, and invisible once it is gone."""

import copy
import gc
import inspect
import itertools
import pickle
import weakref

import pytest
import wrapt

from deepcache_patch.patching.patch import Patch, installed_patch


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
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(loud)
    assert greeter.greet("ann") == "HELLO ANN"
    patch.remove()
    assert greeter.greet("ann") == "hello ann"


def test_absence_is_restored(greeter):
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(loud)
    assert list(vars(greeter)) == ["greet"]
    patch.remove()
    assert vars(greeter) == {}


def test_a_value_that_was_there_is_restored(greeter):
    def own():
        return "hi"

    greeter.greet = own
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(loud)
    assert greeter.greet() == "HI"
    patch.remove()
    assert vars(greeter) == {"greet": own}


def test_install_and_remove_are_idempotent(greeter):
    patch = Patch(greeter, "greet", greeter.greet)
    patch.remove()
    patch.install(loud)
    patch.install(loud)
    assert patch.installed
    assert greeter.greet() == "HELLO YOU"
    patch.remove()
    patch.remove()
    assert not patch.installed
    assert vars(greeter) == {}
    patch.install(loud)
    assert greeter.greet() == "HELLO YOU"


def test_removed_under_another_wrapper_it_passes_calls_through(greeter):
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(loud)
    theirs = wrapt.FunctionWrapper(
        greeter.greet, lambda wrapped, _, args, kwargs: f"<{wrapped(*args, **kwargs)}>"
    )
    greeter.greet = theirs
    assert greeter.greet() == "<HELLO YOU>"
    assert patch.installed
    patch.remove()
    assert not patch.installed
    assert greeter.greet is theirs
    assert greeter.greet() == "<hello you>"
    patch.install(loud)
    assert greeter.greet() == "<HELLO YOU>".upper()
    patch.remove()
    assert greeter.greet is theirs


def test_a_replaced_attribute_is_noticed_and_left_alone(greeter):
    # unet.compile() puts its compiled call in the place of the patch.
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(loud)

    def other():
        return "other"

    greeter.greet = other
    assert not patch.installed
    patch.remove()
    assert greeter.greet is other


def test_after_removal_nothing_holds_the_wrapper(greeter):
    class Loud:
        def __call__(self, original, args, kwargs):
            return loud(original, args, kwargs)

    wrapper = Loud()
    patch = Patch(greeter, "greet", greeter.greet)
    patch.install(wrapper)
    greeter.greet()
    patch.remove()
    alive = weakref.ref(wrapper)
    gc.disable()
    try:
        del wrapper
        assert alive() is None  # by reference count: no cycle holds a model's gigabytes
    finally:
        gc.enable()


def test_signature_and_docstring_are_those_of_the_original(greeter):
    signature, doc = inspect.signature(greeter.greet), greeter.greet.__doc__
    Patch(greeter, "greet", greeter.greet).install(loud)
    assert inspect.signature(greeter.greet) == signature
    assert greeter.greet.__doc__ == doc


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_the_wrapper_is_a_copy_of_the_original(greeter, duplicate):
    # wrapt's own proxies raise NotImplementedError, so a copied pipeline would, too.
    Patch(greeter, "greet", greeter.greet).install(loud)
    duplicated = duplicate(greeter.greet)
    assert not isinstance(duplicated, wrapt.FunctionWrapper)
    assert duplicated() == "hello you"


def test_a_patch_can_be_recognised(greeter):
    patch = Patch(greeter, "greet", greeter.greet, tag="mine")
    assert installed_patch(greeter, "greet") is None
    patch.install(loud)
    assert installed_patch(greeter, "greet") is patch
    assert patch.tag == "mine"
    patch.remove()
    assert installed_patch(greeter, "greet") is None


def test_a_patch_knows_whether_it_covers_something(greeter):
    patch = Patch(greeter, "greet", greeter.greet)
    assert not patch.covers_another
    patch.install(loud)
    assert not patch.covers_another
    patch.remove()
    for there, covers in ((None, False), (greeter.greet, True)):
        greeter.greet = there
        assert not patch.covers_another
        patch.install(loud)
        assert patch.covers_another is covers
        patch.remove()
    assert not patch.covers_another


def test_patches_of_one_attribute_come_off_in_any_order(greeter):
    """The one that was put on first and came off first stayed inside of the other."""
    for order in itertools.permutations("ab"):
        patches = {tag: Patch(greeter, "greet", greeter.greet, tag=tag) for tag in "ab"}
        patches["a"].install(lambda original, args, kwargs: f"a({original(*args, **kwargs)})")
        patches["b"].install(lambda original, args, kwargs: f"b({original(*args, **kwargs)})")
        assert greeter.greet() == "b(a(hello you))"
        assert patches["a"].installed
        assert patches["b"].installed
        assert installed_patch(greeter, "greet") is patches["b"]
        first, last = order
        patches[first].remove()
        assert greeter.greet() == f"{last}(hello you)"
        assert [patches[each].installed for each in "ab"] == [last == "a", last == "b"]
        assert installed_patch(greeter, "greet") is patches[last]
        patches[last].remove()
        assert vars(greeter) == {}


def test_a_patch_without_a_tag_is_not_found_and_is_nothing_that_is_covered(greeter):
    watching = Patch(greeter, "greet", greeter.greet)
    watching.install(loud)
    assert installed_patch(greeter, "greet") is None
    patch = Patch(greeter, "greet", greeter.greet, tag="mine")
    patch.install(loud)
    assert not patch.covers_another
    watching.remove()
    watching.install(loud)
    assert installed_patch(greeter, "greet") is patch
    assert watching.covers_another is False
