"""The main job as its users run it: real scripts, real files, real processes."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from configs.loader import load
from configs.messages import format_error
from evaluate.files.predictions import read_predictions
from evaluate.reports.launches import read_launches
from evaluate.reports.metrics_file import read_metrics
from extract.settings.backbone import Mode
from extract.video.reader import VideoReader
from tests.conftest import REPOSITORY
from tests.forks import good
from tests.marks import slow
from tests.test_report import read
from train.config import Experiment
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.model import Detector
from train.detector.sources import build_detector
from train.detector.training import DetectionTask
from train.engine.checkpoint import Checkpoint, check_same_run, load_checkpoint
from train.engine.loop import TrainingRun

DEMO = REPOSITORY / "configs/e2e/demo/forward.yaml"
QUICK = [
    "--sampling.window_size=64",
    "--training.epochs=4",
    "--training.stop_epoch=4",
    "--training.warmup_epochs=1",
    "--training.global_batch=2",
    "--training.validate_from=2",
    "--training.validate_every=2",
    "--training.workers=0",
]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def script(
    *arguments: object, launcher: tuple[str, ...] = (), timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run one of the entry scripts in a process of its own, from the repository's root."""
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


ONE_PROCESS = (
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    "configs/accelerate/one_process.yaml",
)
# `accelerate launch --cpu --num_processes 2` would start one.
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def trained(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the real script."""
    out = tmp_path_factory.mktemp("runs") / "run"
    # --resume where nothing was begun starts afresh: jobs that may be restarted always carry it.
    arguments = ["train/e2e.py", "--resume", "--config", DEMO, *data, *QUICK]
    done = script(*arguments, "--training.workers=1", "--out", out, launcher=ONE_PROCESS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validation mAP" in done.stdout + done.stderr
    return out


def test_a_run_leaves_everything_behind(trained: Path, data: list[str]) -> None:
    expected = load(Experiment, DEMO, [*data, *QUICK, "--training.workers=1", f"--out={trained}"])
    assert load(Experiment, trained / "config.yaml") == expected
    metrics = read_metrics(trained / "metrics.jsonl")
    checks = [line["validation"]["average_mAP"] for line in metrics if "validation" in line]
    assert len(checks) == 2 and all(0 <= value <= 1 for value in checks)
    for name in ("last.pt", "best.pt"):
        checkpoint = load_checkpoint(trained / name, Experiment)
        assert checkpoint.config == expected and len(checkpoint.classes) == 6
        assert bool(checkpoint.training) == (name == "last.pt")
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    _, content = read(trained)
    assert len(content["tables"]["validations"]["rows"]) == 2
    (launch,) = read_launches(trained)
    assert launch.outcome == "finished" and launch.about["classes"] == 6
    assert {"steps", "waiting for data", "validation", "checkpoints"} < launch.seconds.keys()
    command = ["-m", "accelerate.commands.launch", "--config_file", ONE_PROCESS[-1]]
    expected_command = [*command, "train/e2e.py", "--resume", "--config", str(DEMO), *data, *QUICK]
    expected_command += ["--training.workers=1", "--out", str(trained)]
    assert shlex.split(launch.command)[1:] == expected_command
    assert any((trained / "tensorboard").iterdir())
    assert not list(trained.glob("*.part"))


def test_evaluation_scores_the_checkpoint_and_its_own_predictions(
    trained: Path, data: list[str], tmp_path: Path
) -> None:
    told = good("evaluate/run.py", "--checkpoint", trained / "last.pt", "--out", tmp_path)
    assert "all classes" in told and "average mAP" in told
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "tious.png").read_bytes().startswith(b"\x89PNG")
    _, content = read(tmp_path)
    assert content["facts"]["average mAP"] == metrics["average_mAP"]
    assert str(trained / "last.pt") in " ".join(content["texts"]["The exact command"].split())
    good(
        "evaluate/run.py",
        *("--predictions", tmp_path / "predictions.json"),
        *("--annotations", data[0].split("=")[1], "--subset", "test"),
        *("--tious", 0.3, 0.4, 0.5, 0.6, 0.7, "--out", tmp_path / "again"),
    )
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == metrics

    # The same detector from Python, window by window in other batches.
    found = read_predictions(tmp_path / "predictions.json")
    videos = Path(data[1].split("=")[1])
    detector = Detector.from_checkpoint(trained / "last.pt")
    for name, expected in found.items():
        actual = detector.detect(videos / f"{name}.mp4")
        assert [d.label for d in actual[:20]] == [d.label for d in expected[:20]]
        for one, two in zip(actual[:20], expected[:20], strict=True):
            assert one[1:] == pytest.approx(two[1:], abs=1e-4)


@pytest.mark.slow
def test_two_processes_detect_what_one_does(trained: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, launcher in zip(folders, ((), TWO_PROCESSES), strict=True):
        done = script(
            *("evaluate/run.py", "--checkpoint", trained / "last.pt", "--out", folder),
            "--evaluation.batch_size=1",
            launcher=launcher,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_predictions(folder / "predictions.json") for folder in folders)
    assert one == two and sum(map(len, one.values())) > 0


def build(
    config: Experiment, accelerator: Accelerator, resume: bool = False
) -> TrainingRun[DetectionTask]:
    torch.manual_seed(config.training.seed)
    annotations = load_annotations(config.data)
    fps = config.sampling.fps
    training = load_items(config.data, annotations, "training", sampling_fps=fps)
    subset = config.data.validation_subset
    validation = load_items(config.data, annotations, subset, sampling_fps=fps) if subset else None
    detector = Detector(config, annotations.classes)
    detector.load_pretrained()
    Path(config.out).mkdir(parents=True, exist_ok=True)
    task = DetectionTask(detector, training, validation, accelerator)
    return TrainingRun(task, accelerator, resume)


def the_same_curve(one: Path, two: Path) -> list[dict[str, Any]]:
    """Assert that two finished runs are bit for bit the same; return their common metrics."""
    for file in ("last.pt", "best.pt"):
        left, right = (load_checkpoint(folder / file, Experiment) for folder in (one, two))
        for part in ("model", "ema"):
            for name, tensor in getattr(left, part).items():
                assert torch.equal(tensor, getattr(right, part)[name]), f"{file} {part} {name}"
    curves = [
        [
            {k: v for k, v in line.items() if k != "seconds_per_step"}
            for line in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (one, two)
    ]
    assert curves[0] == curves[1]
    return curves[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [pytest.param("in an epoch", marks=pytest.mark.slow), "in a validation"]
)
def test_a_resumed_run_is_the_run_that_would_have_been(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    config = load(Experiment, DEMO, [*data, *QUICK, f"--out={tmp_path / 'whole'}"])
    build(config, accelerator).train()
    broken = replace(config, out=str(tmp_path / "broken"))
    run = build(broken, accelerator)
    name = "_train_epoch" if where == "in an epoch" else "_validate"
    original = getattr(TrainingRun, name)

    def interrupted(self: TrainingRun[DetectionTask]) -> None:
        if where == "in a validation" and self.epoch == 2:
            raise KeyboardInterrupt
        original(self)
        if where == "in an epoch" and self.epoch == 2:  # the third, after the last checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.undo()
    build(broken, accelerator, resume=True).train()

    curve = the_same_curve(tmp_path / "whole", tmp_path / "broken")
    assert sum("validation" in line for line in curve) == 2
    assert sum("loss" in line for line in curve) == 4


def test_going_on_with_other_videos_is_told(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = [*QUICK, "--training.stop_epoch=1", "--data.validation_subset=null"]
    config = load(Experiment, DEMO, [*data, *short, f"--out={tmp_path}"])
    run = build(config, accelerator)
    run.train()
    first = run.task.videos[0]
    capsys.readouterr()
    for blocked in ([], [first]):
        fewer = replace(config, data=replace(config.data, blocked=tuple(blocked)))
        annotations = load_annotations(fewer.data)
        items = load_items(fewer.data, annotations, "training")
        task = DetectionTask(build_detector(config, annotations.classes), items, None, accelerator)
        TrainingRun(task, accelerator, resume=True)
        told = capsys.readouterr().out
        assert ("resumes with training videos other than those" in told) == bool(blocked)
        assert (f"without {first}" in told) == bool(blocked)


def test_best_checkpoints_cannot_be_resumed(tmp_path: Path) -> None:
    config = load(Experiment, DEMO)
    saved = Checkpoint(config, ("a",), {}, {}, {})
    with pytest.raises(ValueError, match=r"no training state \(a best\.pt\?\)"):
        check_same_run(tmp_path / "last.pt", saved, config, ("a",), 1)


def test_only_the_same_run_is_resumed(data: list[str], tmp_path: Path) -> None:
    common = [*data, *QUICK, f"--out={tmp_path / 'run'}"]
    config = load(Experiment, DEMO, common)
    saved = Checkpoint(config, ("a", "b"), {}, {}, {"processes": 1})
    path = Path("last.pt")
    for override, expected in {
        "--training.lr=0.5": r"training\.lr was 0\.001, is 0\.5",
        "--training.global_batch=8": r"training\.global_batch was 2, is 8",
        "--evaluation.tious=[0.5]": r"evaluation\.tious",
        "--direction=reversed": r"direction was forward, is reversed",
    }.items():
        other = load(Experiment, DEMO, [*common, override])
        with pytest.raises(ValueError, match=expected):
            check_same_run(path, saved, other, ("a", "b"), 1)
    with pytest.raises(ValueError, match="classes were a, b, are b, a"):
        check_same_run(path, saved, config, ("b", "a"), 1)
    with pytest.raises(ValueError, match="processes were 1, are 2"):
        check_same_run(path, saved, config, ("a", "b"), 2)
    longer = load(Experiment, DEMO, [*common, "--training.stop_epoch=3", "--training.workers=5"])
    check_same_run(path, saved, longer, ("a", "b"), 1)


@pytest.mark.slow
def test_a_refused_resume_leaves_the_run_as_it_was(trained: Path, data: list[str]) -> None:
    before = {name: (trained / name).read_bytes() for name in ("config.yaml", "last.pt")}
    arguments = ["train/e2e.py", "--resume", "--config", DEMO, *data, *QUICK, "--out", trained]
    done = script(*arguments, "--training.lr=0.5")
    assert done.returncode == 1 and "training.lr was 0.001, is 0.5" in done.stderr
    assert before == {name: (trained / name).read_bytes() for name in before}


@pytest.mark.slow
def test_a_subset_without_annotations_gets_detections(
    trained: Path, data: list[str], tmp_path: Path
) -> None:
    annotations = json.loads(Path(data[0].split("=")[1]).read_text())
    for video in annotations["database"].values():
        if video["subset"] == "test":
            del video["annotations"]
    (tmp_path / "unlabelled.json").write_text(json.dumps(annotations))
    done = script(
        *("evaluate/run.py", "--checkpoint", trained / "best.pt", "--out", tmp_path / "out"),
        *("--annotations", tmp_path / "unlabelled.json", "--training.workers=0"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no annotations to score against" in done.stdout
    assert len(read_predictions(tmp_path / "out/predictions.json")) == 3
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.slow
def test_predictions_of_something_else_are_warned_about(data: list[str], tmp_path: Path) -> None:
    entry = {"segment": [0, 1], "label": "Juggling", "score": 0.5}
    (tmp_path / "p.json").write_text(json.dumps({"results": {"elsewhere": [entry]}}))
    annotations = data[0].split("=")[1]
    done = script(
        *("evaluate/run.py", "--predictions", tmp_path / "p.json", "--annotations", annotations),
        *("--subset", "test"),
    )
    assert done.returncode == 1 and "not one segment was found in 3 videos" in done.stderr
    assert "1 of 1 predicted videos are not in subset 'test'" in done.stdout
    assert "labels that the annotations do not have: Juggling" in done.stdout
    assert (tmp_path / "p-test/metrics.json").exists()


def test_a_workers_error_is_one_line() -> None:
    text = "Caught VideoError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
    text += " last):\n  File x\nextract.video.VideoError: a.mp4: cannot be decoded: its data are"
    assert format_error(ValueError(text)) == "error: a.mp4: cannot be decoded: its data are"
    assert format_error(ValueError("plain: text")) == "error: plain: text"


@pytest.mark.parametrize("mode", ["adapter", slow("frozen"), slow("full")])
def test_only_what_should_learn_moves(
    data: list[str], tmp_path: Path, accelerator: Accelerator, mode: Mode
) -> None:
    overrides = [f"--backbone.mode={mode}", "--training.stop_epoch=1", f"--out={tmp_path}"]
    run = build(load(Experiment, DEMO, [*data, *QUICK, *overrides]), accelerator)
    before = {name: p.detach().clone() for name, p in run.task.model.named_parameters()}
    run.train()
    moved = {
        ".".join(name.split(".")[2:4]) if ".backbone." in name else "head"
        for name, p in run.task.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    expected = {
        "adapter": {"head", "backbone.adapters"},
        "frozen": {"head"},
        "full": {"head", "backbone.trunk"},
    }
    assert moved == expected[mode]
    # What is frozen has no average of its own, in memory or in the file.
    learning = {name for name, p in run.task.model.named_parameters() if p.requires_grad}
    assert run.average.tensors.keys() == learning
    checkpoint = load_checkpoint(tmp_path / "last.pt", Experiment)
    name = "streams.0.backbone.trunk.patch_embed.weight"
    shared = checkpoint.ema[name].data_ptr() == checkpoint.model[name].data_ptr()
    assert shared == (name not in learning) == (mode != "full")


@pytest.mark.slow
def test_training_runs_in_bfloat16_reversed_with_recomputation(
    data: list[str], tmp_path: Path
) -> None:
    done = script(
        *("train/e2e.py", "--config", DEMO, *data, *QUICK, "--out", tmp_path / "run"),
        *("--training.precision=bf16", "--direction=reversed", "--training.accumulate=2"),
        *("--backbone.recompute=selective", "--training.stop_epoch=1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_checkpoint(tmp_path / "run/last.pt", Experiment).config.direction == "reversed"


def test_a_diverged_run_names_the_videos(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    run = build(load(Experiment, DEMO, [*data, *QUICK, f"--out={tmp_path}"]), accelerator)
    with torch.no_grad():
        adapters = run.task.model.get_submodule("streams.0.backbone.adapters")
        next(adapters.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"loss became nan on windows of training_00"):
        run.train()
    assert not (tmp_path / "last.pt").exists()


def test_out_of_memory_says_what_to_lower(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(load(Experiment, DEMO, [*data, *QUICK, f"--out={tmp_path}"]), accelerator)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "wrapped", torch.nn.Module())
    monkeypatch.setattr(run.wrapped, "forward", full, raising=False)
    with pytest.raises(MemoryError, match=r"raise training\.accumulate"):
        run.train()


@pytest.mark.slow
def test_users_errors_are_one_line_without_a_traceback(
    trained: Path, data: list[str], tmp_path: Path
) -> None:
    base = ["train/e2e.py", "--config", DEMO, *data]
    cases = [
        ([*base, "--training.learning_rate=1"], "did you mean 'training."),
        ([*base, "--out", trained], "holds a run already; add --resume"),
        ([*base, "--data.train_subset=trianing", "--out", tmp_path / "a"], "training"),
        ([*base, "--backbone.weights=absent.pth", "--out", tmp_path / "b"], "no checkpoint at"),
        (["evaluate/run.py", "--checkpoint", tmp_path / "absent.pt"], "no checkpoint at"),
    ]
    for arguments, expected in cases:
        done = script(*arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert expected in done.stderr and "error: " in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_pipeline_runs_on_real_clips(shared: Path, tmp_path: Path) -> None:
    names = ["demo", "part_0", "flipping_a_pancake"]
    database = {
        name: {
            "subset": "test" if name == "part_0" else "training",
            "annotations": [
                {"segment": ["0.2", "0.9"], "label": "first"},
                {"segment": [0.4, 1.0], "label": "second"},
            ],
        }
        for name in names
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    settings = [
        f"--data.annotations={tmp_path / 'annotations.json'}",
        f"--data.videos={shared / 'clips'}",
        "--data.classes=null",
        "--data.validation_subset=null",
        "--training.stop_epoch=2",
        "--training.global_batch=2",
        *("--pixels.random_crop=[0.3, 1.0]", "--pixels.flip=0.5", "--pixels.rand_augment=2"),
        "--pixels.colour_jitter=[0.5, 0.5, 0.5, 0.1]",
    ]
    out = tmp_path / "run"
    done = script("train/e2e.py", "--config", DEMO, *settings, "--out", out, launcher=ONE_PROCESS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2/2" in done.stderr
    done = script("evaluate/run.py", "--checkpoint", out / "last.pt")
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_predictions(out / "evaluation/last-test/predictions.json")
    assert list(found) == ["part_0"] and found["part_0"]
    reader = VideoReader(shared / "clips/part_0.mp4")
    duration = len(reader) / reader.fps
    assert all(0 <= d.start_s <= d.end_s <= duration + 1e-6 for d in found["part_0"])
    assert "average_mAP" in json.loads((out / "evaluation/last-test/metrics.json").read_text())
