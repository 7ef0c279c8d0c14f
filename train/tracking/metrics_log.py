"""The metrics of a run in progress, as JSON lines, for TensorBoard and other trackers."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from configs.atomic import write_text
from evaluate.reports.metrics_file import METRICS, read_metrics
from train.tracking.trackers import Trackers

TENSORBOARD = "tensorboard"  # in `training.trackers`, and the folder of its curves


class MetricsLog:
    """The writer of metrics.jsonl in a run's folder, and of its curves for `training.trackers`.

    Args:
        active: true on one process only.
        step: the last one already done; records of later ones are removed.
        validated: whether the validation at that step was done, too.
        trackers: what gets curves beside the file; `settings`: the experiment's, for them.

    Raises:
        ValueError: a tracker does not start.
    """

    def __init__(
        self,
        folder: Path,
        active: bool,
        step: int,
        validated: bool,
        trackers: Sequence[str] = (TENSORBOARD,),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.active, self.file = active, folder / METRICS
        self.board: SummaryWriter | None = None
        self.trackers = Trackers(trackers if active else (), folder, settings, step)
        if not active:
            return
        _keep_lines(self.file, step, validated)
        if TENSORBOARD in trackers:
            with self._tolerate_write_errors():
                self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, **values: Any) -> None:
        """Record values at a step; a nested dict becomes one group of curves.

        Raises:
            OSError: metrics.jsonl could not be written; its earlier lines are as they were.
        """
        if not self.active:
            return
        _append(self.file, json.dumps({"step": step} | values) + "\n")
        flat: dict[str, float] = {}
        for name, value in values.items():
            group = value if isinstance(value, dict) else {"": value}
            flat |= {f"{name}/{key}" if key else name: number for key, number in group.items()}
        with self._tolerate_write_errors():
            for name, number in flat.items():
                if self.board is not None:
                    self.board.add_scalar(name, number, step)
        self.trackers.log(flat, step)

    def close(self) -> None:
        """Flush the curves."""
        with self._tolerate_write_errors():
            if self.board is not None:
                self.board.close()
        self.trackers.close()

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
