"""When the device finished its last work, without waiting for it."""

import math
import time
from typing import Any

import torch


class DeviceClock:
    """The host's time at which a device finished what was given to it; a CPU is never behind.

    Args:
        new_event: makes events that time, as `torch.cuda.Event(enable_timing=True)` does.
    """

    _first: Any
    _last: Any

    def __init__(self, new_event: Any) -> None:
        self.new_event = new_event
        self.set_anew()

    @classmethod
    def of(cls, device: torch.device) -> "DeviceClock | None":
        """Return a device's clock; None for a CPU, which works while the host waits for it."""
        if device.type != "cuda":
            return None
        return cls(lambda: torch.cuda.Event(enable_timing=True))

    def set_anew(self) -> None:
        """Wait until the device is idle, and count its time from there.

        Both clocks drift apart, by seconds a day, and of long times torch tells only seven digits:
        whoever has waited for the device anyway calls this.
        """
        self._first, self._last = self.new_event(), None
        self._first.record()
        self._first.synchronize()  # its place on the host's clock is known
        self._began = time.monotonic()

    def mark(self) -> None:
        """Remember the work that the device has been given so far as its last."""
        self._last = self.new_event()
        self._last.record()

    def busy_until(self) -> float:
        """Return when the last work was finished, on `time.monotonic`; infinity if it is not."""
        if self._last is None:
            return self._began
        if not self._last.query():
            return math.inf
        return self._began + self._first.elapsed_time(self._last) / 1000
