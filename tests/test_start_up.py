"""What a program leaves out before it is at work (`python -m benchmarks.compare start`)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extract.backbone.videomae import sine_positions
from extract.checkpoints.strict import load_state_dict_strict
from extract.video import guarded, probe
from extract.video.guarded import GuardedPool
from extract.video.index import VideoIndex
from tests.conftest import REPOSITORY
from tests.encodings import Encoding, write_numbered
from tests.marks import slow

# Each takes from half a second to two, in every process.
NOT_TO_DECODE = ("timm", "torchvision", "torch._dynamo", "sympy", "matplotlib", "sklearn", "numba")
NOT_TO_DETECT = (*NOT_TO_DECODE, "torch.distributed.fsdp", "torch._inductor")
BUILD = (
    "import torch; from configs.loader import load; from train.config import Experiment\n"
    "from extract.checkpoints.strict import load_state_dict_strict\n"
    "config = load(Experiment, 'configs/e2e/demo/forward.yaml')\n"
    "import train.detector.model as m; d = m.Detector(config, ('a', 'b'))\n"
    "state = {n: torch.zeros(t.shape) for n, t in d.state_dict().items()}\n"
    "load_state_dict_strict(d, state, 'x'); assert not next(d.parameters()).is_meta\n"
)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        # What a worker of training unpickles.
        slow("import train.data.windows", (*NOT_TO_DETECT, "zarr")),
        slow("import extract.parallel.guarded_frames", (*NOT_TO_DETECT, "accelerate", "zarr")),
        (
            "import train.engine.session, train.detector.training, train.detector.cached_training",
            ("timm", "torchvision", "numba", "matplotlib", "sklearn"),
        ),
        slow(BUILD, (*NOT_TO_DETECT, "zarr")),
        # What evaluate/detect.py and evaluate/run.py take from training.
        (
            "import train.engine.session, train.detector.sources, train.detector.evaluation",
            NOT_TO_DETECT,
        ),
    ],
)
def test_what_is_slow_is_not_imported(code: str, unwanted: tuple[str, ...]) -> None:
    end = f"\nimport sys; print([n for n in {unwanted} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + end], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_positions_stand_on_the_default_device() -> None:
    expected = sine_positions(6, 8)
    assert expected.device.type == "cpu"
    with torch.device("meta"):
        assert sine_positions(6, 8).is_meta
    assert torch.equal(sine_positions(6, 8), expected)


def test_what_is_filled_is_as_it_was_built() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    network[0].bias.requires_grad_(False)
    network[1].register_buffer("own", torch.zeros(2, device="meta"), persistent=False)
    before = {name: (t.shape, t.dtype) for name, t in network.state_dict().items()}
    state = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in before.items()}
    load_state_dict_strict(network, state, "x")
    assert {name: (t.shape, t.dtype) for name, t in network.state_dict().items()} == before
    assert not network[0].bias.requires_grad and network[0].weight.requires_grad
    assert all(bool((t == 1).all()) for t in network.state_dict().values())
    assert network[1].own.device.type == "cpu"


def test_a_process_that_runs_looks_at_a_single_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{n}.mp4" for n in range(3)]
    for number, file in enumerate(files):
        write_numbered(file, 20 + number, Encoding("libx264", "indexed"))
    started = []
    build = guarded._Process.__init__

    def note(self: guarded._Process) -> None:
        started.append(self)
        build(self)

    monkeypatch.setattr(guarded._Process, "__init__", note)
    with GuardedPool(1) as pool:
        for file in files[:2]:
            (index,) = probe.probe([file], running=lambda: pool)
            assert isinstance(index, VideoIndex)
    assert len(started) == 1
    # What is known is asked of no process.
    (index,) = probe.probe(files[:1], running=lambda: pytest.fail("the file is known"))
    assert isinstance(index, VideoIndex)
