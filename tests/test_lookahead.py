"""Batches that are copied ahead: their order, when each begins, and what is wrong with one."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from train.device.lookahead import copied_ahead, start_ahead


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
