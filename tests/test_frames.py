"""The exactness check of `benchmarks/frames.py`, on fewer windows than it is run with by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.encodings import ENCODINGS


@pytest.mark.slow
def test_random_windows_of_every_encoding_are_exact(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.frames", "--windows", "60", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    made = len(ENCODINGS) + 1  # and a rotated one
    assert len(rows) == made + 1
    assert all(row.count("| exact") == 7 for row in rows[:-1])
    assert "refused: cannot be read as video" in rows[-1]
    assert f"60 random windows of {made} files, 2880 frames: 0 frames" in done.stdout
