"""Videos that go bad during a run: vanished, replaced, damaged in their middle, hanging."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from cache.store import Store
from configs.loader import load
from configs.messages import format_error
from evaluate.annotations import Detection
from evaluate.files.predictions import read_predictions
from evaluate.reports.metrics_file import METRICS, read_metrics
from extract.activations.inputs import Piece
from extract.activations.passes import Pass
from extract.activations.plan import SpanRequest, plan
from extract.activations.refresh import refresh
from extract.demo import DemoConfig, write_dataset
from extract.parallel.loader import make_loader
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import sliding_windows
from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video import watchdog
from extract.video.reader import VideoError
from tests.conftest import REPOSITORY
from tests.test_e2e import TWO_PROCESSES, script
from train.config import Experiment
from train.data.batch import Batch
from train.data.cached import evaluation_spans
from train.data.items import VideoItem
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.data.windows import (
    EvaluationWindows,
    TrainingWindows,
    WindowInputs,
    evaluation_loader,
)
from train.detector import detection
from train.detector.calibrate import fit_class_weights
from train.detector.detection import detect_subset, window_loader
from train.detector.evaluation import score_detections
from train.detector.setup import activations_of
from train.detector.sources import build_detector
from train.detector.training import DetectionTask
from train.engine.checkpoint import Checkpoint, save_checkpoint
from train.engine.loop import TrainingRun
from train.engine.run_folder import claim_folder
from train.errors import translate_worker_death
from train.modeling.config import FusionConfig, HeadConfig
from train.modeling.fusion import PredictionFusion
from train.postprocessing.candidates import merge_windows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sizes = DemoConfig(training=3, validation=1, test=3, shortest=7, longest=9)
    write_dataset(folder, sizes, processes=2)
    return folder


@pytest.fixture
def config(whole: Path, tmp_path: Path) -> Experiment:
    """An experiment on a copy of the videos that a test may spoil."""
    folder = Path(shutil.copytree(whole, tmp_path / "data"))
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    data = replace(
        demo.data,
        annotations=str(folder / "annotations.json"),
        videos=str(folder / "videos"),
        classes=str(folder / "classes.txt"),
        bad_videos="skip",
    )
    return replace(
        demo,
        out=str(tmp_path / "out"),
        data=data,
        sampling=SamplingConfig(window_size=32, snippet_stride=2),
        backbone=BackboneConfig(TrunkConfig(32, 2, 2, image_size=32)),
        head=HeadConfig(width=16, heads=2, levels=3),
        training=replace(demo.training, workers=0),
    )


def vanish(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    """Overwrite a stretch of the middle, so that both ends still decode."""
    content = bytearray(path.read_bytes())
    begin, end = len(content) * 6 // 10, len(content) * 7 // 10
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Put a video of another length in its place."""
    shutil.copy(path.parent / "validation_000.mp4", path)


SPOILERS: dict[str, Callable[[Path], None]] = {
    "does not exist": vanish,
    "its data are damaged": damage,
    "was replaced": exchange,
}


def loaded(config: Experiment, subset: str) -> list[Any]:
    return load_items(config.data, load_annotations(config.data), subset)


@pytest.mark.parametrize("cause", SPOILERS)
def test_the_next_training_video_stands_in(config: Experiment, cause: str) -> None:
    # The window is as long as the video, so that it meets the damage.
    config = replace(config, sampling=SamplingConfig(window_size=128, snippet_stride=2))
    items = loaded(config, "training")
    inputs = WindowInputs.of(config)
    windows = TrainingWindows(items, inputs)
    expected = windows[(5, 2)]
    assert expected.problem is None
    SPOILERS[cause](items[1].path)
    sample = windows[(5, 1)]
    assert sample.video == expected.video and torch.equal(sample.inputs[0], expected.inputs[0])
    assert sample.problem and cause in sample.problem and str(items[1].path) in sample.problem
    assert "\n" not in sample.problem
    SPOILERS["does not exist"](items[2].path)
    assert windows[(5, 1)].video == items[0].name  # round the end
    with pytest.raises(VideoError, match=cause):
        TrainingWindows(items, replace(inputs, skip_bad=False))[(5, 1)]
    vanish(items[0].path)
    with pytest.raises(VideoError, match="not one training video can be read"):
        windows[(5, 1)]


@pytest.mark.parametrize(
    ("cause", "workers"),
    [*((c, 0) for c in SPOILERS), pytest.param("its data are damaged", 2, marks=pytest.mark.slow)],
)
def test_the_windows_behind_are_given_up(config: Experiment, cause: str, workers: int) -> None:
    items = loaded(config, "test")
    SPOILERS[cause](items[1].path)
    inputs = WindowInputs.of(config)
    windows = EvaluationWindows(items, inputs, 0.5)
    loader = evaluation_loader(windows, config.evaluation.batch_size, workers)
    good: dict[str, int] = {item.name: 0 for item in items}
    problems = set()
    for batch in loader:
        for row, video in enumerate(batch.videos):
            good[video] += row not in batch.problems
        problems |= {(batch.videos[row], cause) for row, cause in batch.problems.items()}
    for item in (items[0], items[2]):
        assert good[item.name] == len(sliding_windows(item.frames, 0.5, config.sampling))
    total = len(sliding_windows(items[1].frames, 0.5, config.sampling))
    assert good[items[1].name] < total
    # decord works ahead: how many windows come before a damaged stretch differs from time to time.
    assert good[items[1].name] == 0 or cause == "its data are damaged"
    assert {video for video, _ in problems} == {items[1].name}
    assert all(cause in text and str(items[1].path) in text for _, text in problems)

    stopping = EvaluationWindows(items, replace(inputs, skip_bad=False), 0.5)
    with pytest.raises(VideoError) as caught:
        list(evaluation_loader(stopping, config.evaluation.batch_size, workers))
    line = format_error(caught.value)
    assert line.startswith(f"error: {items[1].path}: ") and cause in line and "\n" not in line


@pytest.mark.parametrize("bad_videos", ["stop", "skip"])
def test_a_file_vanishes_during_training(
    config: Experiment,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    bad_videos: Literal["stop", "skip"],
) -> None:
    training = replace(config.training, epochs=3, stop_epoch=3, warmup_epochs=1, global_batch=1)
    data = replace(config.data, bad_videos=bad_videos)
    config = replace(config, training=training, data=data)
    claim_folder(Path(config.out), begun=False)
    items = loaded(config, "training")
    classes = load_annotations(config.data).classes
    task = DetectionTask(build_detector(config, classes), items, None, accelerator)
    run = TrainingRun(task, accelerator, resume=False)
    lost = next(item.path for item in items if item.name == run.task.videos[0])
    end_epoch = TrainingRun._end_epoch

    def lose(self: TrainingRun[DetectionTask]) -> None:
        if self.epoch == 1:
            lost.unlink()
        end_epoch(self)

    monkeypatch.setattr(TrainingRun, "_end_epoch", lose)
    if bad_videos == "stop":
        with pytest.raises(VideoError) as caught:
            run.train()
        assert (
            format_error(caught.value)
            == f"error: {lost}: cannot be read as video: it does not exist"
        )
        return
    run.train()
    lines = read_metrics(Path(config.out) / METRICS)
    assert [line["stand_ins"] for line in lines] == [0, 1, 1]


def test_skipped_videos_do_not_count(config: Experiment, accelerator: Accelerator) -> None:
    # One by one: other company in a batch moves the last digits.
    config = replace(config, evaluation=replace(config.evaluation, batch_size=1))
    items = loaded(config, "test")
    detector = build_detector(config, load_annotations(config.data).classes).eval()
    windows = window_loader(items, 0.5, config, accelerator)
    answers, skipped = detect_subset(detector, items, windows, accelerator, "test")
    everything = answers["forward"]
    assert list(everything) == [item.name for item in items] and not skipped
    damage(items[1].path)
    answers, skipped = detect_subset(detector, items, windows, accelerator, "test")
    found = answers["forward"]
    assert list(skipped) == [items[1].name]
    assert found == {name: everything[name] for name in everything if name not in skipped}
    rest = [items[0], items[2]]
    assert score_detections(items, found, detector) == score_detections(rest, found, detector)
    with pytest.raises(VideoError, match=r"test_001\.mp4"):
        detector.detect(items[1].path)
    for item in items:
        item.path.unlink()
    with pytest.raises(VideoError, match="not one video can be read"):
        detect_subset(detector, items, windows, accelerator, "test")


def test_videos_are_suppressed_while_others_are_read(
    config: Experiment, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = loaded(config, "test")
    config = replace(config, evaluation=replace(config.evaluation, batch_size=1))
    detector = build_detector(config, load_annotations(config.data).classes).eval()
    windows = window_loader(items, 0.5, config, accelerator)
    suppressed, predict = Event(), detector.predict
    done: list[str] = []

    def merge(parts: Any, item: VideoItem, *others: Any) -> list[Detection]:
        done.append(item.name)
        suppressed.set()
        return merge_windows(parts, item, *others)

    def predict_last(*arguments: Any) -> Any:
        if windows_seen.pop() == 0:  # the last window of all
            assert suppressed.wait(60) and done[0] == items[0].name
        return predict(*arguments)

    windows_seen = list(range(len(list(windows))))
    monkeypatch.setattr(detection, "merge_windows", merge)
    monkeypatch.setattr(detector, "predict", predict_last)
    detect_subset(detector, items, windows, accelerator, "test")
    assert sorted(done) == sorted(item.name for item in items) and not windows_seen


@pytest.mark.slow
def test_all_processes_skip_the_same_videos(config: Experiment, tmp_path: Path) -> None:
    """The video's undamaged windows lie in the other process."""
    detector = build_detector(config, load_annotations(config.data).classes)
    weights = detector.state_dict()
    save_checkpoint(
        tmp_path / "best.pt", Checkpoint(config, detector.classes, weights, weights, {})
    )
    damage(Path(config.data.videos) / "test_001.mp4")
    written = []
    for name, launcher in (("one", ()), ("two", TWO_PROCESSES)):
        done = script(
            *("evaluate/run.py", "--checkpoint", tmp_path / "best.pt", "--out", tmp_path / name),
            launcher=launcher,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 of 3 videos were skipped" in done.stdout and "test_001.mp4" in done.stdout
        written.append(read_predictions(tmp_path / name / "predictions.json"))
    assert written[0].keys() == written[1].keys() == {"test_000", "test_002"}


def request_features(config: Experiment, store: Store) -> list[SpanRequest]:
    """Return what is to be extracted for a new detector's test videos."""
    annotations = load_annotations(config.data)
    detector = build_detector(config, annotations.classes).eval()
    items = load_items(config.data, annotations, "test", store=store)
    (activations,) = activations_of(detector, store, ["weights.pt"])
    spans = evaluation_spans(items, 0.5, config.sampling, "forward")
    return [SpanRequest(activations, spans, ("features",))]


def test_extraction_finishes_the_others_before_it_stops(
    config: Experiment, accelerator: Accelerator, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "cache", "a") as store:
        wanted = request_features(config, store)
        damage(wanted[0].spans[0].path)
        with pytest.raises(VideoError, match=r"test_000\.mp4: was replaced"):
            refresh(plan(wanted, accelerator), accelerator, 0)
        rest = plan(wanted, accelerator)
        assert {rest.span(todo).video.name for todo in rest.todo} == {"test_000"}
        assert refresh(rest, accelerator, 0, skip_bad=True).keys() == {"test_000"}


def test_passes_take_what_was_copied_ahead(
    config: Experiment,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tensors travel on the stream of copies, those of videos that cannot be read, too."""
    copied = list[torch.Tensor]()

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.clone())
        return copied[-1]

    def copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
        assert device == accelerator.device
        return (batch.each(mark) for batch in batches)

    taken = list[torch.Tensor]()

    def push(self: Pass, piece: Piece) -> None:
        taken.append(piece.inputs)
        pushed(self, piece)

    pushed = Pass.push
    monkeypatch.setattr("extract.activations.refresh.copied_ahead", copied_ahead)
    monkeypatch.setattr(Pass, "push", push)
    with Store.open(tmp_path / "cache", "a") as store:
        wanted = request_features(config, store)
        damage(wanted[0].spans[0].path)
        made = plan(wanted, accelerator)
        assert refresh(made, accelerator, 0, skip_bad=True).keys() == {"test_000"}
    assert len(copied) > len(taken) > 0
    places = {tensor.data_ptr() for tensor in copied}
    assert places >= {tensor.data_ptr() for tensor in taken}


class HangingReader:
    """What a decoder that waits for ever looks like, or that crashes."""

    path = Path("clip.mp4")

    def __init__(self, crashes: bool = False) -> None:
        self.crashes = crashes

    def chunks(self, rising: object) -> Iterator[np.ndarray]:
        if self.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        yield np.zeros(0)

    def frames_to_decode(self, first: int, last: int) -> int:
        return 0


class HangingWindows(Dataset[int]):
    """A dataset whose only video hangs its decoder, or crashes it."""

    def __init__(self, crashes: bool = False) -> None:
        self.crashes = crashes

    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> int:
        watchdog.BASE_TIMEOUT_S = 0.2
        (window,) = sliding_windows(32, 0.0, SamplingConfig(window_size=16))
        reader: Any = HangingReader(self.crashes)
        return len(next(window_frames(reader, [window], evaluation_transform(PixelConfig(32)))))


LINE = "error: clip.mp4: its decoder hangs"


@pytest.mark.slow
def test_a_decoder_that_hangs_ends_its_process() -> None:
    code = "from tests.test_bad_videos import HangingWindows; HangingWindows()[0]"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.startswith(LINE)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_worker_that_ends_is_an_error_that_names_the_file(
    capfd: pytest.CaptureFixture[str], crashes: bool
) -> None:
    loader = make_loader(HangingWindows(crashes), 1, workers=1)
    unexpected = pytest.raises(OSError, match=r"ended unexpectedly while it decoded clip\.mp4")
    with unexpected as caught, translate_worker_death():
        list(loader)
    told = str(caught.value)
    assert "data.blocked" in told and "--resume" in told and "\n" not in told
    assert (LINE in capfd.readouterr().err) == (not crashes)


class EndingWindows(Dataset[int]):
    """A dataset whose worker ends while it decodes nothing, after a video that was whole."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> int:
        with watchdog.kill_if_stuck("whole.mp4", 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


@pytest.mark.slow
def test_a_worker_that_ends_between_two_files_accuses_none() -> None:
    unexpected = pytest.raises(OSError, match="a decoding worker ended unexpectedly")
    with unexpected as caught, translate_worker_death():
        list(make_loader(EndingWindows(), 1, workers=1))
    assert "whole.mp4" not in str(caught.value) and "training.workers" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Too many open files. Communication with the workers is no longer possible. Please",
        "received 0 items of ancdata",
        "Pin memory thread exited unexpectedly",
    ],
)
def test_batches_that_cannot_be_received_are_an_error_that_says_what_to_do(text: str) -> None:
    remedy = pytest.raises(OSError, match=r"ulimit -n.*training\.workers")
    with remedy as caught, translate_worker_death():
        raise RuntimeError(text)
    told = str(caught.value)
    assert text.split(". ")[0] in told and "--resume" in told and "\n" not in told


def test_fitting_weights_tells_of_a_worker_that_ended(accelerator: Accelerator) -> None:
    def batches() -> Iterator[Batch]:
        yield from ()
        raise RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly")

    detector: Any = SimpleNamespace(fusion=PredictionFusion(FusionConfig("calibrated"), [4], 2))
    with pytest.raises(OSError, match=r"a decoding worker ended unexpectedly.*training\.workers"):
        fit_class_weights(detector, batches(), accelerator)


RAISED = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent …\n"
"""How torch begins what a worker, which has not ended, raised."""


@pytest.mark.parametrize("text", ["another", f"{RAISED}RuntimeError: sizes differ. 3, 4"])
def test_other_errors_are_no_deaths_of_workers(text: str) -> None:
    with pytest.raises(RuntimeError) as caught, translate_worker_death():
        raise RuntimeError(text)
    assert str(caught.value) == text


def test_a_worker_without_memory_is_an_error_that_says_what_to_do() -> None:
    remedy = pytest.raises(MemoryError, match=r"lower training\.workers")
    with remedy as caught, translate_worker_death():
        raise RuntimeError(f"{RAISED}RuntimeError: DefaultCPUAllocator: can't allocate memory: you")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
