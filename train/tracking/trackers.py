"""Curves of a run in other programs: Weights & Biases, MLflow, trackio, through Accelerate."""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TrackioTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_trackio_available, is_wandb_available

from configs.atomic import write_text
from configs.messages import plain_line

RUNS = "trackers.json"  # the run's names there, so that a resumed run continues its curves
PROJECT = "palindrome"
AVAILABLE: dict[str, Callable[[], bool]] = {
    "wandb": is_wandb_available,
    "mlflow": is_mlflow_available,
    "trackio": is_trackio_available,
}
SIGN_IN = {"wandb": "; `wandb login`, or WANDB_MODE=offline", "mlflow": "; see MLFLOW_TRACKING_URI"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError unless the programs of `training.trackers` are installed."""
    missing = [name for name in names if name in AVAILABLE and not AVAILABLE[name]()]
    if missing:
        raise ValueError(
            f"training.trackers: {' and '.join(missing)} not installed: "
            f"`pip install {' '.join(missing)}`, or leave it out"
        )


class Trackers:
    """A run in the trackers that are named; one that fails later is dropped, with a warning.

    A resumed run is the same run there. What it repeats after its last checkpoint has the same
    numbers: nothing has to be removed.

    Args:
        names: of `training.trackers`; TensorBoard is none of ours.
        folder: the run's.
        settings: of the experiment, by their dotted names.
        step: the last one already done.

    Raises:
        ValueError: one cannot start.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], step: int
    ) -> None:
        self.trackers: dict[str, GeneralTracker] = {}
        file = folder / RUNS
        runs: dict[str, str] = json.loads(file.read_text()) if step and file.exists() else {}
        known = dict(runs)
        for name in names:
            if name in AVAILABLE:
                self.trackers[name] = self._start(name, folder, runs)
        if runs != known:
            write_text(file, json.dumps(runs) + "\n")
        plain = {name: _plain(value) for name, value in settings.items()}
        for name in runs.keys() - known.keys():
            # A resumed run may have other settings that do not matter, which MLflow refuses.
            self._call(name, lambda tracker: tracker.store_init_configuration(plain))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record values at a step."""
        for name in list(self.trackers):
            named = {_name_in(name, key): value for key, value in values.items()}
            self._call(name, partial(_log, values=named, step=step))

    def close(self) -> None:
        """End the runs there."""
        for name in list(self.trackers):
            self._call(name, lambda tracker: tracker.finish())

    def _start(self, name: str, folder: Path, runs: dict[str, str]) -> GeneralTracker:
        title, tracker = str(folder), None
        try:
            if name == "mlflow":
                tracker = MLflowTracker(PROJECT, run_id=runs.get(name), run_name=title)
            elif name == "wandb":
                run = runs.setdefault(name, secrets.token_hex(4))
                options = {"id": run, "resume": "allow", "name": title, "dir": str(folder)}
                tracker = WandBTracker(PROJECT, **options)
            else:
                run = runs.setdefault(name, f"{folder.name}-{secrets.token_hex(4)}")
                tracker = TrackioTracker(PROJECT, name=run, resume="allow")
            tracker.start()
        except Exception as error:  # each has its own kinds
            raise ValueError(
                f"training.trackers: {name} does not start: {plain_line(str(error))}"
                f"{SIGN_IN.get(name, '')}"
            ) from error
        if isinstance(tracker, MLflowTracker):
            runs[name] = tracker.tracker.info.run_id
        return tracker

    def _call(self, name: str, call: Callable[[GeneralTracker], None]) -> None:
        try:
            call(self.trackers[name])
        except Exception as error:  # a server that is gone must not end a run of days
            del self.trackers[name]
            print(f"warning: curves in {name} end here: {plain_line(str(error))}")


def _log(tracker: GeneralTracker, values: Mapping[str, float], step: int) -> None:
    tracker.log(values, step=step)


def _name_in(tracker: str, key: str) -> str:
    """Return a measure's name as a tracker allows it: MLflow has no `@`."""
    return re.sub(r"[^\w\-. :/]", "_", key) if tracker == "mlflow" else key


def _plain(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
