"""What is decided for a GPU before it works, seen with stand-ins for torch's functions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.loader import load
from extract.parallel import lookahead
from tests.test_e2e import DEMO
from train.config import Experiment
from train.data.in_memory import free_device_memory
from train.detector import cached_training, detection
from train.engine import session

GPU = torch.device("cuda", 0)


def test_all_epochs_copy_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps freed memory for the stream that it was used on."""
    made = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "Stream", made.append)
    lookahead._copying_stream.cache_clear()
    for _ in range(3):
        assert list(lookahead.copied_ahead([], GPU)) == []
    lookahead._copying_stream.cache_clear()
    assert made == [GPU]


def test_memory_that_torch_keeps_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15)
    assert free_device_memory(GPU) == 30 + 25


@pytest.mark.parametrize("make", [session.make_accelerator, session.inference_accelerator])
def test_precision_is_set_behind_accelerate_and_a_gpu_is_in_use(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate may switch TF32 on; loaders pin batches only where CUDA is in use."""
    calls = list[str]()

    def accelerator(**_: object) -> SimpleNamespace:
        calls.append("accelerator")
        one = {"num_processes": 1, "gradient_accumulation_steps": 1, "distributed_type": None}
        return SimpleNamespace(device=GPU, **one)

    monkeypatch.setattr(session, "Accelerator", accelerator)
    monkeypatch.setattr(session, "set_precision", calls.append)
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(session, "connect", lambda: None)
    make(load(Experiment, DEMO))
    assert calls == ["accelerator", "fp32", "init"]


@pytest.mark.parametrize(
    ("here", "free", "settings", "told"),
    [
        (2, 63e6, {}, True),
        (2, 1.1e9, {}, False),
        (1, 63e6, {}, False),  # of several machines with a GPU each
        (2, 63e6, {"NCCL_SHM_DISABLE": "1"}, False),
        (2, None, {}, False),  # a system without it
    ],
)
@pytest.mark.parametrize("make", [session.make_accelerator, session.inference_accelerator])
def test_nccl_with_little_shared_memory_is_told_of(
    make: Any,
    here: int,
    free: float | None,
    settings: dict[str, str],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def usage(folder: str) -> SimpleNamespace:
        if free is None:
            raise FileNotFoundError(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("shutil.disk_usage", usage)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.delenv("NCCL_SHM_DISABLE", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(session, "set_precision", lambda precision: None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(session, "connect", lambda: None)
    for main in (True, False):
        several = SimpleNamespace(
            device=GPU,
            num_processes=4,
            is_local_main_process=main,
            gradient_accumulation_steps=1,
            distributed_type=None,
        )
        monkeypatch.setattr(session, "Accelerator", lambda several=several, **_: several)
        make(load(Experiment, DEMO))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == (told and main)
        if lines:
            assert "63.0 MB" in lines[0] and "--shm-size" in lines[0] and "NCCL" in lines[0]


@pytest.mark.parametrize(
    ("cores", "here", "threads"), [(64, 8, 4), (16, 8, 2), (8, 8, 1), (2, 8, 1), (2, 1, 2)]
)
def test_suppression_has_no_more_threads_than_a_process_has_cores(
    cores: int, here: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one core's: the compiled loops have no threads of their own (test_nms.py)."""
    monkeypatch.setattr(detection, "count_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert detection.suppression_threads(16) == threads


def test_too_many_processes_are_refused_before_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_training, "ensure_cached", pytest.fail)
    run: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=8), begun=False)
    detector: Any = SimpleNamespace(config=load(Experiment, DEMO))
    with pytest.raises(ValueError, match=r"global_batch 4 cannot be divided by 8 processes"):
        cached_training.train_on_cache(run, detector, (), SimpleNamespace(), ())  # type: ignore[arg-type]
