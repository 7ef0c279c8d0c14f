"""Predictions for large collections: what is counted, and machines that are taken away."""

import math

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import count_collection, count_requests, draw_lengths, simulate_fleet


def test_a_collection_is_counted_by_hand() -> None:
    of = count_collection("s", 10, minutes=2.0, fps=30.0, flops=1e12, decoded=100.0)
    # THUMOS-14: every fourth of 3600 frames, in clips of 16 with padding; tubelets of two.
    assert of.frames == 10 * 900 and of.clips == 10 * 57
    assert of.features == 10 * (57 * 8) * 384 * 2  # float16
    assert of.block == of.features * 100  # patches of 16 in 160 pixels
    assert of.decoding_s == pytest.approx(90.0)
    twice = count_collection("s", 20, minutes=2.0, fps=30.0, flops=1e12, decoded=100.0)
    assert twice.device_s == pytest.approx(2 * of.device_s)


@pytest.mark.parametrize(("shares", "machines"), [(1, 1), (7, 3), (100, 10), (3, 5)])
def test_machines_that_stay_do_all_work_once(shares: int, machines: int) -> None:
    seconds = draw_lengths(500, mean_s=20.0)
    assert seconds.mean() == pytest.approx(20.0)
    fleet = simulate_fleet(seconds, shares, machines, start_s=60.0, taken_every_s=math.inf)
    assert fleet.lost_s == 0
    assert fleet.busy_s == pytest.approx(500 * 20.0 + shares * 60.0)
    assert fleet.busy_s / machines <= fleet.wall_s <= fleet.busy_s


def test_what_is_left_of_a_share_waits_for_its_machine_to_be_lost() -> None:
    """Nobody goes on with a share before it was given up: idle machines shorten nothing."""
    seconds = np.full(100, 360.0)  # ten hours
    for machines in (1, 2, 10):
        fleet = simulate_fleet(seconds, 1, machines, start_s=60.0, taken_every_s=3600.0)
        assert fleet.wall_s == pytest.approx(fleet.busy_s)


def test_requests_are_those_of_flushes_and_folds() -> None:
    """Not of videos: what describes them is in the files of flushes."""
    one = count_collection("s", 1000, minutes=2.0, fps=30.0, flops=1e12, decoded=100.0)
    assert count_requests(one, 1, 1, 1, wall_s=1.0) == 11 + 17 + 4  # a job, a flush, a fold
    assert count_requests(one, 1, 1, 2, wall_s=60.0) == 11 + 4 * 17 + 4
    assert count_requests(one, 2**30, 1, 1, wall_s=1.0) == 11 + 16 * 17 + 4 * 2 + 32 + 16


def test_what_a_machine_that_is_taken_away_had_written_stays() -> None:
    seconds = np.full(100, 360.0)  # ten hours
    fleet = simulate_fleet(seconds, 1, 1, start_s=60.0, taken_every_s=3600.0)
    # Each time at most what had not been flushed, and the start: beside the first start.
    assert 10 * 3600 + 60 < fleet.busy_s < 1.1 * (10 * 3600 + 60)
    assert fleet.busy_s - 60 - fleet.lost_s == pytest.approx(10 * 3600)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--videos 0", "--videos: give 1 or more"),
        ("--gpus 8 0", "--gpus: give 1 or more"),
        ("--shares 0", "--shares: give 1 or more"),
        ("--cores -1", "--cores: give 1 or more"),
        ("--minutes 0", "--minutes: give a number above 0"),
        ("--tflops nan", "--tflops: give a number above 0"),
        ("--start -1", "--start: give 0 or more"),
        ("--taken_every 0.001", "--taken_every: machines that live shorter than --start"),
    ],
)
def test_impossible_numbers_are_told(
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Some would be predicted for ever: no machine lives until a job has begun."""
    monkeypatch.setattr("sys.argv", ["scale.py", *words.split()])
    with pytest.raises(SystemExit):
        scale.main()
    assert message in capsys.readouterr().err
