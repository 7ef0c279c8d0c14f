"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import fsspec.config
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import settings

from extract.demo import DemoConfig, write_dataset
from extract.sampling import frame_cache
from tests.object_store import Proxy, serving

REPOSITORY = Path(__file__).resolve().parent.parent
SHARDS_ON_CPUS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU"
)
GOLDEN = REPOSITORY / "tests/golden"  # reference numbers; README.md there says whose

# What is remembered of videos stays out of the user's own cache, in scripts that tests start, too.
CACHE = TemporaryDirectory(prefix="palindrome-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

# How long a test takes depends on what else the machine does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real clips and annotations, which are not ours to ship.

    Tests that need it skip where it is absent.
    """
    folder = REPOSITORY.parent / "shared"
    if not all((folder / part).is_dir() for part in ("clips", "thumos14")):
        pytest.skip("real clips and annotations (../shared) are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def roomy() -> Iterator[None]:
    """A disk that is nearly full with other things is no concern of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_cache, "RESERVE", 0)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that point an experiment to a small demo dataset."""
    folder = tmp_path_factory.mktemp("demo")
    sizes = DemoConfig(training=4, validation=2, test=3, shortest=5, longest=9)
    write_dataset(folder, sizes, processes=2)
    return [
        f"--data.annotations={folder / 'annotations.json'}",
        f"--data.videos={folder / 'videos'}",
        f"--data.classes={folder / 'classes.txt'}",
        *("--sampling.fps=null", "--sampling.snippet_stride=2"),  # tests count in frames
    ]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One process on the CPU, whatever other tests left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Proxy]:
    """A server of S3's protocol with a bucket, behind a proxy that can do harm."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package)
    with serving() as url, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(url)
        found: dict[str, dict[str, Any]] = {}
        fsspec.config.set_conf_env(found, proxy.environment)
        patch.setitem(fsspec.config.conf, "s3", found["s3"])
        fsspec.filesystem("s3").mkdir("bucket")
        yield proxy
        proxy.close()


@pytest.fixture
def s3(s3_server: Proxy) -> Iterator[Proxy]:
    """The server of S3's protocol, whole; s3://bucket is there."""
    gc.collect()  # stores of earlier tests give their leases back now: it would count later
    yield s3_server
    s3_server.fault = lambda method, path: None
    s3_server.open()
