"""Loaders: whole batches come from workers whatever /dev/shm has, and failures end a run."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from configs.messages import format_error
from extract.activations.inputs import Piece
from extract.parallel.loader import PackedBatch, make_loader
from tests.conftest import REPOSITORY
from tests.marks import slow
from train.errors import translate_worker_death
from train.pretraining import pretrain

MEGABYTES = 24  # more than the /dev/shm of the tests has


@dataclass(frozen=True)
class Mixed:
    """A batch with all kinds of tensors, and more."""

    inputs: tuple[Tensor, ...]
    names: dict[int, str]


def mixed(number: int) -> Mixed:
    return Mixed(
        (
            torch.arange(12).view(3, 4).mT,  # not contiguous
            torch.tensor([True, False, True]),
            torch.zeros((0, 2)),
            torch.tensor(float(number)),
            torch.ones(5, dtype=torch.bfloat16),
            torch.full((MEGABYTES, 2**20), number, dtype=torch.uint8),
        ),
        {number: "name"},
    )


class Items(Dataset[Mixed]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Mixed:
        return mixed(number)


class Stream(IterableDataset[Mixed]):
    def __iter__(self) -> Iterator[Mixed]:
        yield from map(mixed, range(3))


class Failing(Dataset[Any]):
    """A dataset whose sample cannot be handed on."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> Any:
        if self.how == "not picklable":
            return threading.Lock()
        if self.how == "error made on the way":  # as botocore makes its own
            raise type("NoSuchKey", (OSError,), {})("there is no such key")
        sample = torch.zeros(8)
        if self.how == "no room in the thread":
            PackedBatch.__reduce__ = refuse  # type: ignore[method-assign, assignment]
        elif self.how == "no memory":
            os.memfd_create = refuse  # type: ignore[assignment]
        else:
            os.dup = refuse
        return sample


def refuse(*_: object) -> int:
    raise OSError(28, "No space left on device")


def first(samples: list[Any]) -> Any:
    return samples[0]


def check(batch: Mixed, number: int) -> None:
    for found, expected in zip(batch.inputs, mixed(number).inputs, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)
    assert batch.names == {number: "name"}


def load_all() -> None:
    """Load from every kind of loader; several batches are alive at a time, and can be changed."""
    for dataset, size, options in (
        (Items(), 1, {"collate_fn": first}),
        (Stream(), None, {}),
    ):
        batches = list(make_loader(dataset, size, workers=1, **options))
        for number, batch in enumerate(batches):
            check(batch, number)
            batch.inputs[0].zero_()


def test_torchs_own_ways_of_making_batches_stay() -> None:
    plain = [torch.arange(3.0), torch.ones(3)]
    (batch,) = make_loader(plain, 2, workers=1)  # type: ignore[arg-type]  # a list is one, too
    torch.testing.assert_close(batch, torch.stack(plain))


def test_batches_are_pinned_only_where_a_gpu_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = [torch.ones(3)]
    assert not make_loader(plain, 1, workers=0).pin_memory
    # A run on the CPU of a machine with a GPU must take no memory there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not make_loader(plain, 1, workers=0).pin_memory
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert make_loader(plain, 1, workers=0).pin_memory
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.neg)
    assert torch.equal(pin_memory(Piece((0,), None, torch.ones(2))).inputs, -torch.ones(2))


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return sys.platform == "linux" and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.slow
def test_batches_come_as_they_were_with_a_small_shared_memory() -> None:
    """Docker's /dev/shm has 64 MB; torch's own way needs some hundreds, or waits for ever."""
    code = "import tests.test_loader as t; t.load_all(); print('done')"
    command = [sys.executable, "-c", code]
    if can_mount():
        mount = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, "sh", *command]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("not picklable", "cannot pickle '_thread.lock' object"),
        slow("error made on the way", "there is no such key"),
        slow("no room in the thread", "[Errno 28] No space left on device"),
        slow("no memory", "[Errno 28] No space left on device"),
        slow("no files", "[Errno 28] No space left on device"),
    ],
)
def test_what_cannot_be_handed_on_is_an_error_at_once(how: str, text: str) -> None:
    began = time.monotonic()
    with pytest.raises((OSError, TypeError)) as caught:
        list(make_loader(Failing(how), 1, workers=1, collate_fn=first, timeout=60))
    assert time.monotonic() - began < 60
    assert format_error(caught.value) == f"error: {text}"


@pytest.fixture
def ending_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers end before they begin."""
    resource_tracker.ensure_running()  # Python's own, which would be started with the same command
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")


@pytest.mark.usefixtures("ending_workers")
def test_workers_that_end_before_they_begin_are_an_error() -> None:
    """Killed while they import, where a container's memory ends, they read nothing from a pipe."""
    loader = make_loader([bytes(2**20)] * 2, 1, workers=2)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="a decoding worker ended"), translate_worker_death():
        next(iter(loader))


@pytest.mark.usefixtures("ending_workers")
def test_a_worker_that_ends_is_an_error_of_pretraining_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a decoding worker ended"):
        pretrain(tmp_path / "tiny.safetensors", steps=1, batch=1, lr=1e-3, seed=0)


@pytest.mark.slow
def test_a_batch_takes_one_file_however_many_tensors_it_has() -> None:
    def files() -> int:
        return len(os.listdir("/dev/fd"))

    before = files()
    batches = list(make_loader([torch.zeros(3)] * 40, None, workers=1))  # type: ignore[arg-type]
    ragged = PackedBatch([torch.zeros(n) for n in range(100)])
    assert files() - before <= len(batches) + 10 and ragged.message
