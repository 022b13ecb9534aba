"""How many bytes of tensors are alive, now and at the most: exact and repeatable, unlike the
memory of a process.

`LiveBytes` counts the storages that operations make, until they are freed. It sees every tensor
that an operation returns, also on the device "meta", where tensors have shapes and no values; it
does not see what an operation needs within itself. On CUDA, `CudaBytes` asks torch's own
allocator, which knows that, too.
"""

import gc
import weakref
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(Protocol):
    """Counts the bytes that are taken from its `__enter__` on."""

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        ...

    @property
    def peak(self) -> int:
        """The most that were."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the storages that operations make on one device, each once, until they are freed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._device = device
        self.now = self.peak = 0
        # By address: the storage itself, to be told when it is freed, and its bytes. Those that
        # are older than the count have none.
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._note(tensor.untyped_storage(), made=False)
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self._note(tensor.untyped_storage(), made=True)
        return output

    def _note(self, storage: torch.UntypedStorage, *, made: bool) -> None:
        place = storage._cdata
        if place in self._alive or storage.device.type != self._device.type:
            return
        nbytes = storage.nbytes() if made else 0

        def freed(_: Any) -> None:
            del self._alive[place]
            self.now -= nbytes

        self._alive[place] = weakref.ref(storage, freed), nbytes
        self.now += nbytes
        self.peak = max(self.peak, self.now)


class CudaBytes:
    """What torch's allocator of a CUDA device has given out; in steps of 512 bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        return torch.cuda.memory_allocated(self._device) - self._before

    @property
    def peak(self) -> int:
        """The most that were."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def __enter__(self) -> "CudaBytes":
        gc.collect()  # what was there before shall not be freed meanwhile
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.synchronize(self._device)


class FusedAttention(TorchFunctionMode):
    """Lets attention take no more than its output, as the kernels of real devices do.

    On "meta", torch would compute it step by step, with all scores at once.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, value = args[0], args[2]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


def storage_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers, memory that several share counted once."""
    storages = (tensor.untyped_storage() for tensor in _tensors(value))
    return sum({each._cdata: each.nbytes() for each in storages}.values())


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
