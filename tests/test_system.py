"""Without what only Linux or only Unix has: all is imported, files are written, frames read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import system
from tests.conftest import REPOSITORY
from tests.encodings import write_numbered
from tests.test_imports import modules

ELSEWHERE = """
import importlib, os, signal, sys
import accelerate, numpy as np, torch, torchvision, zarr  # they need some of it here
from pathlib import Path

for name in ("sched_getaffinity", "posix_fallocate", "killpg", "memfd_create", "O_CLOEXEC"):
    delattr(os, name)
for name in ("setitimer", "ITIMER_REAL"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "decord", "torchcodec"):
    sys.modules[name] = None
for name in sys.argv[2:]:
    importlib.import_module(name)

from configs.atomic import write_text
from extract.sampling import frame_cache
from extract.sampling.frame_cache import FrameCache
from extract.sampling.transforms import PixelConfig, evaluation_transform
from extract.sampling.windows import SamplingConfig, sliding_windows
from extract.video import VideoReader
from tests.encodings import read_numbers
from train.data.video_files import probe_item, with_digest
from train.engine.run_folder import claim_folder
from train.cost.workload import count_cores

frame_cache.RESERVE = 0  # a nearly full disk is no concern of the tests
folder = Path(sys.argv[1])
for text in ("one", "two"):
    write_text(folder / "some.json", text)
assert (folder / "some.json").read_text() == "two" and not [*folder.glob("*.part")]
claim_folder(folder / "run", begun=False)
assert count_cores() >= 1
sampling = SamplingConfig(window_size=32, snippet_stride=2)
item, cache = with_digest(probe_item(folder / "clip.mp4")), FrameCache(folder, sampling)
transform = evaluation_transform(PixelConfig(32))
windows = sliding_windows(item.frames, 0.0, sampling)
assert len([*cache.frames_of(item.path, item.info, windows, transform)]) == len(windows)
assert cache.file(item.info, transform.shrink).exists()
frames = VideoReader(folder / "clip.mp4").frames(np.arange(20)[::-1])
assert read_numbers(frames) == [*range(20)][::-1]
"""


@pytest.mark.slow
def test_everything_is_imported_where_only_the_standard_library_is(tmp_path: Path) -> None:
    write_numbered(tmp_path / "clip.mp4", 20)
    names = sorted(name.removesuffix(".__init__") for name in modules())
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path), *names],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr


def test_only_cores_that_may_be_used_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert system.count_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert system.count_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.count_cores() == 1
