"""Numbers on their way between host and device, for which nobody waits."""

import torch


class HostCopy:
    """A number on its way from the device: nothing waits for it until `value` is asked for.

    Args:
        number: Shape `()`.
    """

    def __init__(self, number: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._number = number
        if number.is_cuda:  # pragma: no cover (needs CUDA)
            self._number = torch.empty((), dtype=number.dtype, device="cpu", pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(number.device))

    def value(self) -> float:
        """The number, once it has arrived: what was enqueued after it need not be done."""
        if self._arrived is not None:  # pragma: no cover (needs CUDA)
            self._arrived.synchronize()
        return self._number.item()


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a host's tensor on the device; what is enqueued there later finds it complete."""
    if device.type != "cuda":
        return values.to(device)
    # From other memory than pinned the copy would wait for the device.
    return values.pin_memory().to(device, non_blocking=True)  # pragma: no cover (needs CUDA)
