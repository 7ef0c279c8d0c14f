"""The metrics of a run in progress, as JSON lines and for TensorBoard."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from configs.atomic import write_text
from evaluate.reports.metrics_file import METRICS, read_metrics


class MetricsLog:
    """The writer of metrics.jsonl and tensorboard/ in a run's folder.

    Args:
        active: true on one process only.
        step: the last one already done; records of later ones are removed.
        validated: whether the validation at that step was done, too.
    """

    def __init__(self, folder: Path, active: bool, step: int, validated: bool) -> None:
        self.active, self.file = active, folder / METRICS
        self.board: SummaryWriter | None = None
        if active:
            _keep_lines(self.file, step, validated)
            with self._tolerate_write_errors():
                self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **values: Any) -> None:
        """Record values at a step; a nested dict becomes one group of curves.

        Raises:
            OSError: metrics.jsonl could not be written; its earlier lines are as they were.
        """
        if not self.active:
            return
        _append(self.file, json.dumps({"step": step} | values) + "\n")
        with self._tolerate_write_errors():
            for name, value in values.items():
                group = value if isinstance(value, dict) else {"": value}
                for key, number in group.items():
                    if self.board is not None:
                        self.board.add_scalar(f"{name}/{key}" if key else name, number, step)

    def close(self) -> None:
        """Flush the curves."""
        with self._tolerate_write_errors():
            if self.board is not None:
                self.board.close()

    @contextmanager
    def _tolerate_write_errors(self) -> Iterator[None]:
        """Go on without TensorBoard's copy of the metrics where it cannot be written."""
        try:
            yield
        except OSError as error:
            self.board = None
            print(f"warning: TensorBoard's curves end here: {error}; {self.file} continues")


def _append(path: Path, line: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError:
        os.truncate(path, size)  # half a line would spoil the next one
        raise


def _keep_lines(path: Path, step: int, validated: bool) -> None:
    """Remove the lines of steps that a resumed run repeats: all of them for a new run."""
    lines = read_metrics(path) if path.exists() else []
    kept = [line for line in lines if (line["step"], "validation" in line) <= (step, validated)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
