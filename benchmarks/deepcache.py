"""DeepCache 0.1.1, the published package of that name, as its README says.

Every room that compares with it takes it from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def deepcache_helper(pipe: Any, interval: int, branch: int) -> Any:
    """One of its helpers, not yet enabled."""
    from DeepCache import DeepCacheSDHelper  # nobody else needs it installed

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    return helper


@contextmanager
def deepcache(pipe: Any, interval: int, branch: int) -> Iterator[Any]:
    """DeepCache 0.1.1 for one generation; each gets a new helper.

    A helper counts all its generations from the step at which the first one began, and keeps its
    features until it is disabled.
    """
    helper = deepcache_helper(pipe, interval, branch)
    try:
        helper.enable()
        yield helper
        helper.disable()
    finally:
        # What `disable` leaves behind, and all of it where it was not reached: the next contestant
        # is to find the modules as they were.
        for module in pipe.unet.modules():
            vars(module).pop("forward", None)
