"""Batches that are copied ahead: their order, when each begins, and what is wrong with one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from extract.parallel import lookahead
from extract.parallel.lookahead import copied_ahead, start_ahead
from train.data.batch import Batch


def test_the_next_one_is_started_before_one_is_given() -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        for number in range(4):
            seen.append(f"read {number}")
            yield number

    def start(number: int) -> int:
        seen.append(f"start {number}")
        return 10 * number

    found = []
    for result in start_ahead(items(), start):
        seen.append(f"use {result // 10}")
        found.append(result)
    assert found == [0, 10, 20, 30]
    of_each = [f"{what} {n}" for n in range(4) for what in ("read", "start", "use")]
    assert sorted(seen) == sorted(of_each)
    for number in range(4):
        ahead = seen[: seen.index(f"use {number}")]
        started = sum(line.startswith("start") for line in ahead)
        assert started == min(number + 2, 4)  # one ahead, and no more


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_before_a_failure_are_given_first(count: int) -> None:
    def items() -> Iterator[int]:
        yield from range(count)
        raise FloatingPointError("no more")

    found = []
    with pytest.raises(FloatingPointError, match="no more"):
        for number in start_ahead(items(), lambda number: number):
            found.append(number)
    assert found == [*range(count)]


def test_a_failed_start_passes_through() -> None:
    def start(number: int) -> float:
        return 1 / (2 - number)

    found = []
    with pytest.raises(ZeroDivisionError):
        for share in start_ahead(range(5), start):
            found.append(share)
    assert found == [0.5, 1]


def test_whoever_stops_stops_the_reader() -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    source = items()
    ahead = start_ahead(source, lambda number: number)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert not closed  # it is the caller's
    source.close()  # type: ignore[attr-defined]
    assert closed


@dataclass
class Untouchable:
    number: int


def test_on_a_cpu_batches_pass_through() -> None:
    batches = [Untouchable(number) for number in range(3)]
    assert [*copied_ahead(batches, torch.device("cpu"))] == batches  # type: ignore[type-var]


class Given(TorchDispatchMode):
    """Collects operations, with the device of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (name := func.overloadpacket.__name__) != "device":
            self.seen.append(f"{name} {args[0].device.type}")
        return func(*args, **(kwargs or {}))


def test_the_copying_stream_only_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is on the device it knows neither when it is made nor when its memory is freed."""
    given = Given()

    @contextmanager
    def stream(copying: object) -> Iterator[None]:
        with given:
            yield

    nowhere = SimpleNamespace(record_event=lambda: None, wait_event=lambda event: None)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: nowhere)
    monkeypatch.setattr(lookahead, "_copying_stream", lambda device: nowhere)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, used_on: None)
    with FakeTensorMode():
        # As a head is trained on features that are held there: cut, padded and stacked already.
        features = torch.zeros(2, 8, 16, dtype=torch.float16, device="cuda")
        mask, reflection = torch.ones(2, 32, dtype=torch.bool), torch.ones(2)
        batch = Batch(("a", "b"), (), (features,), mask, reflection, ((),), ())
        (moved,) = copied_ahead([batch], torch.device("cuda"))
        used = moved.to(torch.device("cuda"))
    assert given.seen == ["_to_copy cpu"] * 2
    assert moved.mask.device.type == moved.reflection.device.type == "cuda"
    assert used.inputs[0].dtype == torch.float32
