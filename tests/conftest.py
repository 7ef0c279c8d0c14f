"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests/golden"  # reference numbers; README.md there says whose


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real clips and annotations, which are not ours to ship.

    Tests that need it skip where it is absent.
    """
    folder = REPOSITORY.parent / "shared"
    if not all((folder / part).is_dir() for part in ("clips", "thumos14")):
        pytest.skip("real clips and annotations (../shared) are not here")
    return folder
