"""What a training step needs of a GPU's memory, counted on tensors without numbers."""

import pytest

from benchmarks.memory import count_step
from extract.backbone.recompute import Recompute

LONG, SIDE = "v2-g, 1536 frames", "v2-g, 1536 frames, side"
MEASURED = pytest.mark.slow


@pytest.mark.parametrize(
    ("size", "recompute", "windows", "gigabytes"),
    [
        ("s", "selective", 2, 4.8),
        pytest.param("s", "none", 2, 10.5, marks=MEASURED),
        pytest.param("b", "none", 2, 20.6, marks=MEASURED),
        pytest.param("h", "full", 2, 20.2, marks=MEASURED),
        pytest.param(LONG, "full", 2, 73.2, marks=MEASURED),
        pytest.param(SIDE, "full", 2, 40.0, marks=MEASURED),
    ],
)
def test_a_step_needs_no_more_than_was_counted(
    size: str, recompute: Recompute, windows: int, gigabytes: float
) -> None:
    assert count_step(size, recompute, windows).peak / 1e9 == pytest.approx(gigabytes, rel=0.1)
