"""Progress of work: a bar in a terminal, plain lines in a log."""

import math
import sys
from typing import Any

from tqdm import tqdm

LINE_S = 30.0  # between two lines of a log


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, which writes lines instead where stderr is a file or a pipe.

    A line comes every `LINE_S` at most, and one at the end of bars that stay (`leave`) or that have
    written some. There are no carriage returns, of which a log would get thousands.

    Args:
        options: tqdm's.
    """

    leave: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self.plain = not (options.get("file") or sys.stderr).isatty()
        self.line_at: float | None = None  # when the last line came
        # Without columns it describes itself without a bar.
        super().__init__(*args, **(options | {"ncols": 0} if self.plain else options))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the progress, unless it is too soon for another line; return whether it is shown."""
        if not self.plain:
            return bool(super().display(msg, pos))
        since = self.line_at or getattr(self, "start_t", math.inf)  # none before it has begun
        if self._time() - since >= LINE_S:
            self._write_line()
        return False  # nothing that could be removed again

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar, which is not there in a log."""
        if not self.plain:
            super().clear(nolock)

    def close(self) -> None:
        """Remove the bar or leave its last state, as `leave` says."""
        if self.plain and not getattr(self, "disable", True):
            if self.line_at or (self.leave and not self.delay):
                self._write_line()
            self.leave = False
        super().close()

    def _write_line(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
        self.line_at = self._time()
