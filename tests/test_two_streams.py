"""Runs of two streams, as users start them: joint training, fusions on the cache, scores."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from cache.store import Store
from configs.loader import load
from evaluate.files.predictions import read_predictions
from evaluate.mean_ap import MeanAP
from evaluate.reports.metrics_file import read_metrics
from tests.conftest import REPOSITORY
from tests.forks import good, script
from tests.marks import slow
from tests.test_e2e import DEMO, QUICK, TWO_PROCESSES
from tests.test_e2e import script as launched
from train.config import Experiment
from train.data.cached import ensure_cached, evaluation_spans
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.detection import detect_subset, window_loader
from train.detector.evaluation import score_detections
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import build_detector, merge_configs
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.modeling.config import FEATURE_METHODS, MIXING_METHODS, Method
from train.modeling.fusion import ClassWeights, PredictionFusion

CONFIGS = REPOSITORY / "configs/fusion"
BOTH = REPOSITORY / "configs/e2e/demo/both.yaml"
DIRECTIONS = ("forward", "reversed")
SECOND_EVERYWHERE = ("--backbone.second_from_block=0", "--backbone.trainable_from_block=0")
LEARNING = ("experiment_3_1", "experiment_3_2", "experiment_3_3", *FEATURE_METHODS)


@pytest.fixture(scope="module")
def streams(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of both directions, and their features in a cache."""
    folder = tmp_path_factory.mktemp("streams")
    for seed, direction in enumerate(("forward", "reversed")):
        overrides = [*data, *QUICK, f"--direction={direction}", f"--training.seed={seed}"]
        config = load(Experiment, DEMO, [*overrides, "--cache.dtype=float32"])
        torch.manual_seed(seed)
        detector = Detector(config, tuple(Path(str(config.data.classes)).read_text().split()))
        detector.load_pretrained()
        for (
            stream
        ) in detector.streams:  # scores that differ, segments of some length: as if trained
            torch.nn.init.normal_(stream.head.class_out.weight, std=0.3)
            torch.nn.init.ones_(stream.head.distance_out.bias)  # type: ignore[arg-type]
        state = detector.state_dict()
        rates = (20.0 + seed, 30.0 + seed)
        saved = Checkpoint(config, detector.classes, state, state, {}, rates)
        save_checkpoint(folder / f"{direction}.pt", saved)
    both = [folder / "forward.pt", folder / "reversed.pt"]
    arguments = ["--checkpoint", *both, "--cache", folder / "cache"]
    good("extract/run.py", *arguments, "--of", "train", "validation", "test")
    return folder


def fused(streams: Path, out: Path, *more: object) -> str:
    both = [streams / "forward.pt", streams / "reversed.pt"]
    return good(
        "train/heads.py", "--checkpoint", *both, "--cache", streams / "cache", "--out", out, *more
    )


def scored(streams: Path, checkpoint: Path) -> Path:
    out = checkpoint.parent / "scores"
    cache = ["--cache", streams / "cache"]
    good("evaluate/run.py", "--checkpoint", checkpoint, *cache, "--out", out)
    return out


@pytest.mark.slow
def test_averaging_needs_no_training_and_tells_of_each_stream(
    streams: Path, tmp_path: Path
) -> None:
    config = CONFIGS / "average.yaml"
    assert "nothing to train" in fused(streams, tmp_path / "mean", "--config", config)
    out = scored(streams, tmp_path / "mean/last.pt")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["streams"].keys() == {"forward", "reversed"}
    for direction in ("forward", "reversed"):
        alone = scored(streams, streams / f"{direction}.pt")
        theirs = json.loads((alone / "metrics.json").read_text())
        assert {k: theirs[k] for k in metrics["streams"][direction]} == metrics["streams"][
            direction
        ]
        one = (alone / "predictions.json").read_bytes()
        assert one == (out / f"predictions-{direction}.json").read_bytes()

    # Late fusion of files: their segments together, as the fusion that does so before suppression.
    truth = load_checkpoint(streams / "forward.pt", Experiment).config.data
    files = [out / f"predictions-{direction}.json" for direction in ("forward", "reversed")]
    annotated = ["--annotations", truth.annotations, "--subset", "test"]
    good("evaluate/run.py", "--predictions", *files, *annotated, "--out", tmp_path / "late")
    late = read_predictions(tmp_path / "late/predictions.json")
    first, second = (read_predictions(file) for file in files)
    for video, found in late.items():
        assert max(d.score for d in found) == max(d.score for d in first[video] + second[video])
    fused(streams, tmp_path / "joined", "--fusion.method=segments")
    joined = read_predictions(scored(streams, tmp_path / "joined/last.pt") / "predictions.json")
    assert late.keys() == joined.keys()


@pytest.mark.slow
def test_untrained_fusions_score_as_their_parts(streams: Path, accelerator: Accelerator) -> None:
    """Before training every fusion's mAP is that of the mean, or of the first stream, exactly."""
    sources = [
        (str(streams / f"{d}.pt"), load_checkpoint(streams / f"{d}.pt", Experiment))
        for d in DIRECTIONS
    ]
    scores: dict[str, MeanAP] = {}
    with Store.open(streams / "cache", "a") as store:
        for method in (m for m in get_args(Method) if m != "none"):
            config = merge_configs(None, sources, [f"--fusion.method={method}"])
            config = replace(config, evaluation=replace(config.evaluation, tious=(0.1, 0.3, 0.5)))
            items = load_items(config.data, load_annotations(config.data), "test", None, store)
            detector = build_detector(config, sources[0][1].classes, sources).eval()
            activations = activations_of(detector, store, ["weights.pt"])
            overlap = config.sampling.test_overlap
            spans = [
                evaluation_spans(items, overlap, config.sampling, d) for d in config.directions
            ]
            cached, _ = ensure_cached(activations, spans, "features", [items], accelerator, 0)
            assert not any(of.counts.full for of in activations)
            windows = window_loader(items, overlap, config, accelerator, cached)
            found, _ = detect_subset(detector, items, windows, accelerator, "test", of_streams=True)
            scores |= {
                name: score_detections(items, found[name], detector)
                for name in detector.stream_names
            }
            scores[method] = score_detections(items, found["fused"], detector)
    for method in ("calibrated", *MIXING_METHODS):
        assert scores[method].per_tiou == scores["average"].per_tiou, method
    for method in FEATURE_METHODS:
        assert scores[method].per_tiou == scores["forward"].per_tiou, method
    numbers = [scores[name].average for name in ("forward", "reversed", "average", "segments")]
    assert len(set(numbers)) == 4 and min(numbers) > 0


QUICKLY = (
    *("--training.warmup_epochs=0", "--training.ema_decay=0.5"),
    *("--training.epochs=8", "--training.stop_epoch=8"),
)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def untrained(streams: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[float]]:
    """Losses of fusions of predictions and of features (true) that stay what they begin as."""
    folder = tmp_path_factory.mktemp("untrained")
    for name in ("experiment_3_2", "gated"):
        config = ["--config", CONFIGS / f"{name}.yaml", *QUICKLY, "--training.lr=0"]
        fused(streams, folder / name, *config)
    return {False: losses(folder / "experiment_3_2"), True: losses(folder / "gated")}


@pytest.mark.parametrize(
    "name",
    [
        # The others learn in the same loop.
        pytest.param(name, marks=[] if name == "experiment_3_2" else pytest.mark.slow)
        for name in LEARNING
    ],
)
def test_fusions_learn_from_the_cache(
    streams: Path, untrained: dict[bool, list[float]], tmp_path: Path, name: str
) -> None:
    told = fused(streams, tmp_path / "run", "--config", CONFIGS / f"{name}.yaml", *QUICKLY)
    assert "spans are there\n" in told, told
    found, still = losses(tmp_path / "run"), untrained[name in FEATURE_METHODS]
    assert len(found) == 8 and np.isfinite(found).all()
    assert found[-1] < still[-1]
    trained = load_checkpoint(tmp_path / "run/last.pt", Experiment)
    for number, direction in enumerate(("forward", "reversed")):
        before = load_checkpoint(streams / f"{direction}.pt", Experiment).ema
        for key, tensor in before.items():
            assert torch.equal(trained.ema[key.replace("streams.0", f"streams.{number}")], tensor)
    assert not trained.config.head.learns


@pytest.mark.slow
def test_class_weights_are_fitted(streams: Path, tmp_path: Path) -> None:
    config = CONFIGS / "calibrated.yaml"
    fused(streams, tmp_path / "run", "--config", config, "--data.train_subset=validation")
    fusion = Detector.from_checkpoint(tmp_path / "run/last.pt").fusion
    assert isinstance(fusion, PredictionFusion) and isinstance(fusion.mix, ClassWeights)
    assert (fusion.mix.weight != 0.5).any() and fusion.mix.weight.isfinite().all()
    scored(streams, tmp_path / "run/last.pt")


@pytest.mark.slow
def test_second_adapters_learn_behind_frozen_ones(streams: Path, tmp_path: Path) -> None:
    config = CONFIGS / "experiment_2.yaml"
    quick = ["--training.epochs=2", "--training.stop_epoch=2"]
    told = fused(streams, tmp_path / "run", "--config", config, *quick)
    assert "full and" in told and "0 partial" in told  # block 3 was not stored
    found = load_checkpoint(tmp_path / "run/last.pt", Experiment)
    before = load_checkpoint(streams / "forward.pt", Experiment).ema
    for key, tensor in found.ema.items():
        if ".second." in key:
            assert key.split(".")[4] in ("4", "5")
        elif key.startswith("streams.0."):
            assert torch.equal(tensor, before[key])
    moved = [
        k for k in found.ema if ".second." in k and k.endswith("up.weight") and found.ema[k].any()
    ]
    assert len(moved) == 4
    scored(streams, tmp_path / "run/last.pt")


@pytest.fixture(scope="module")
def mean(streams: Path) -> Path:
    """The checkpoint of the streams' average."""
    fused(streams, streams / "mean", "--config", CONFIGS / "average.yaml")
    kept = load_checkpoint(streams / "mean/last.pt", Experiment).frame_rates
    assert kept == (20.0, 31.0)  # of both
    return streams / "mean/last.pt"


def test_one_stream_learns_what_two_answer(streams: Path, mean: Path, tmp_path: Path) -> None:
    teacher = ["--training.teacher", mean, "--training.teacher_weight=10"]
    taught = ["--config", CONFIGS / "distilled.yaml", *QUICKLY, *teacher, "--training.lr=0.005"]
    ours = ["--checkpoint", streams / "forward.pt", "--cache", streams / "cache"]
    run = ["train/heads.py", *ours, *taught, "--out", tmp_path / "run"]
    good(*run, "--training.stop_epoch=3")
    told = good(*run, "--resume")
    assert "learns what 2 streams predict" in told, told
    found = load_checkpoint(tmp_path / "run/last.pt", Experiment)
    assert found.config.directions == ("forward",)
    before = load_checkpoint(streams / "forward.pt", Experiment)
    for key, tensor in before.ema.items():
        assert ".head." in key or torch.equal(found.ema[key], tensor), key
    after, first = distance(streams, found, mean), distance(streams, before, mean)
    assert after < 0.8 * first, (after, first)


def test_a_taught_stream_is_built_on_without_its_teacher(data: list[str]) -> None:
    config = load(Experiment, DEMO, [*data, "--training.teacher=gone.pt"])
    taught = Checkpoint(config, ("a",), {}, {}, {})
    alone = merge_configs(None, [("taught.pt", taught)], [])
    assert alone.training.teacher is None
    again = merge_configs(None, [("taught.pt", taught)], ["--training.teacher=other.pt"])
    assert again.training.teacher == "other.pt"


def distance(streams: Path, one: Checkpoint[Experiment], mean: Path) -> float:
    """Return how far a stream's scores are from the fused ones, in the windows of validation."""
    teacher = Detector.from_checkpoint(mean)
    student = Detector.restore(one, "student")
    config = teacher.config
    with Store.open(streams / "cache", "a") as store:
        items = load_items(config.data, load_annotations(config.data), "validation", None, store)
        overlap, accelerator = config.sampling.test_overlap, Accelerator(cpu=True)
        spans = [evaluation_spans(items, overlap, config.sampling, d) for d in config.directions]
        of = activations_of(teacher, store, ["weights.pt"])
        cached, _ = ensure_cached(of, spans, "features", [items], accelerator, 0)
        found = []
        for each in window_loader(items, overlap, config, accelerator, cached):
            batch = each.to(accelerator.device)
            with torch.no_grad():
                ((fused, _),) = teacher.predict_batch(batch)["fused"]
                (alone,) = student.outputs(batch.inputs[:1], batch.mask)
            valid = fused.flat()[2]
            scores = [torch.sigmoid(answer.flat()[0][valid]) for answer in (fused, alone)]
            found.append((scores[0] - scores[1]).abs().mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--training.teacher=none.pt"], "none.pt"),
        (["--direction=reversed"], "answers in forward time, and direction is reversed"),
        (["--sampling.window_size=128"], "sampling.window_size"),
        (["--head.levels=4"], "head.levels"),
        (["--backbone.trainable_from_block=5"], "only a head .* set backbone.trainable_from_block"),
        (["--fusion.method=average"], "training.teacher: .* one stream"),
        (["--training.teacher_weight=0"], "training.teacher_weight must be above 0"),
        slow(["--training.teacher={segments}"], "segments .*give .*average"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(
    streams: Path, mean: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    if "{segments}" in changes[0]:
        fused(streams, tmp_path / "segments", "--config", CONFIGS / "segments.yaml")
    changes = [each.replace("{segments}", f"{tmp_path}/segments/last.pt") for each in changes]
    checkpoints = [streams / "forward.pt", streams / "reversed.pt"]
    both = checkpoints if "--fusion.method=average" in changes else checkpoints[:1]
    taught = ["--config", CONFIGS / "distilled.yaml", *QUICKLY, "--out", tmp_path / "run"]
    teacher = [f"--training.teacher={mean}", *changes]
    ours = ["--checkpoint", *both, "--cache", streams / "cache"]
    done = script("train/heads.py", *ours, *taught, *teacher)
    assert done.returncode == 1
    assert re.search(f"^error: .*{message}", done.stderr, re.MULTILINE), done.stderr


def test_a_teacher_is_of_no_use_end_to_end(data: list[str], tmp_path: Path) -> None:
    taught = ["--config", DEMO, *data, "--training.teacher=any.pt", "--out", tmp_path]
    done = script("train/e2e.py", *taught)
    assert done.returncode == 1 and "error: training.teacher: " in done.stderr, done.stderr


@pytest.mark.slow
def test_joint_training_is_two_trainings(data: list[str], tmp_path: Path) -> None:
    """Summed losses of two networks: each learns what it would alone (drop path aside)."""
    plain = [*data, *QUICK, "--head.drop_path=0", "--training.epochs=2", "--training.stop_epoch=2"]
    joint = ["train/e2e.py", "--config", BOTH, *plain]
    good(*joint, "--out", tmp_path / "both", "--cache", tmp_path / "cache")
    both = load_checkpoint(tmp_path / "both/last.pt", Experiment)
    for number, direction in enumerate(("forward", "reversed")):
        _begin(both, number, tmp_path / f"{direction}.pt")
        alone = ["--config", DEMO, *plain, f"--direction={direction}"]
        start = ["--init-from", tmp_path / f"{direction}.pt"]
        good("train/e2e.py", *alone, *start, "--out", tmp_path / direction)
        for key, tensor in load_checkpoint(
            tmp_path / direction / "last.pt", Experiment
        ).ema.items():
            theirs = both.ema[key.replace("streams.0", f"streams.{number}")]
            assert torch.allclose(tensor, theirs, atol=2e-5), key
    # Its validations have left both streams' features.
    arguments = ["--checkpoint", tmp_path / "both/last.pt", "--cache", tmp_path / "cache"]
    told = good("extract/run.py", *arguments, "--of", "validation", "--plan")
    there, total = told.split("cache: ")[1].split(" spans")[0].split(" of ")
    assert there == total != "0"
    # Experiment 1-1 goes on from streams that were trained alone.
    tuned = ["--forward-from", tmp_path / "forward/last.pt"]
    tuned += ["--reversed-from", tmp_path / "reversed/last.pt"]
    still = ["--training.lr=0", "--training.backbone_lr=0"]
    good(*joint, *tuned, *still, "--out", tmp_path / "tuned")
    same = load_checkpoint(tmp_path / "tuned/last.pt", Experiment).ema
    for key, tensor in both.ema.items():
        assert torch.allclose(same[key], tensor, atol=2e-5), key


@pytest.mark.slow
def test_processes_and_interruptions_change_nothing(data: list[str], tmp_path: Path) -> None:
    quick = [*data, *QUICK, "--head.drop_path=0", "--data.validation_subset=null"]
    quick += ["--training.epochs=2", "--training.stop_epoch=2"]
    joint = ["train/e2e.py", "--config", BOTH, *quick]
    good(*joint, "--out", tmp_path / "whole")
    shared = [*joint, "--out", tmp_path / "parts"]
    for part in ("--training.stop_epoch=1", "--resume"):
        done = launched(*shared, part, launcher=TWO_PROCESSES)
        assert done.returncode == 0, done.stdout + done.stderr
    whole, parts = (
        load_checkpoint(tmp_path / f"{run}/last.pt", Experiment).ema for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        assert torch.allclose(tensor, parts[key], atol=5e-5), key


@pytest.mark.slow
def test_heads_learn_on_through_a_fusion_from_stored_windows_in_bfloat16(
    streams: Path, tmp_path: Path
) -> None:
    both = ["--checkpoint", streams / "forward.pt", streams / "reversed.pt"]
    config = ["--config", CONFIGS / "experiment_3_3.yaml", *QUICKLY, "--head.learns=true"]
    stored = ["--cache", tmp_path / "cache", "--cache.span=window", "--training.precision=bf16"]
    good("train/heads.py", *both, *config, *stored, "--out", tmp_path / "run")
    found = losses(tmp_path / "run")
    assert np.isfinite(found).all() and found[-1] < found[0]
    trained = load_checkpoint(tmp_path / "run/last.pt", Experiment).ema
    for number, direction in enumerate(DIRECTIONS):
        for key, tensor in load_checkpoint(streams / f"{direction}.pt", Experiment).ema.items():
            same = torch.equal(trained[key.replace("streams.0", f"streams.{number}")], tensor)
            assert same or ".head." in key
    moved = {key.split(".")[1] for key in trained if ".head.class_out.weight" in key}
    assert moved == {"0", "1"}


@pytest.mark.slow
def test_second_adapters_everywhere_learn_end_to_end_for_a_fusion_of_features(
    streams: Path, data: list[str], tmp_path: Path
) -> None:
    both = [f"--{direction}-from={streams / direction}.pt" for direction in DIRECTIONS]
    quick = [*data, *QUICK, "--training.epochs=2", "--training.stop_epoch=2"]
    method = ["--fusion.method=early", *SECOND_EVERYWHERE, "--out", tmp_path / "run"]
    good("train/e2e.py", "--config", BOTH, *both, *quick, *method)
    trained = load_checkpoint(tmp_path / "run/last.pt", Experiment).ema
    for number, direction in enumerate(DIRECTIONS):
        for key, tensor in load_checkpoint(streams / f"{direction}.pt", Experiment).ema.items():
            assert torch.equal(trained[key.replace("streams.0", f"streams.{number}")], tensor)
    for number in range(2):
        of = f"streams.{number}.backbone.second."
        moved = [key for key in trained if key.startswith(of) and key.endswith("up.weight")]
        assert len(moved) == 6 and all(trained[key].any() for key in moved)
    # The streams' heads have never seen what the second adapters do: alone they say nothing.
    out = scored(streams, tmp_path / "run/last.pt")
    assert "streams" not in json.loads((out / "metrics.json").read_text())


def _begin(both: Checkpoint[Experiment], number: int, path: Path) -> None:
    """Write the weights with which a stream of a joint run began."""
    pair = build_detector(both.config, both.classes)
    prefix = f"streams.{number}."
    tensors = {
        key.replace(prefix, "streams.0."): tensor
        for key, tensor in pair.state_dict().items()
        if key.startswith(prefix)
    }
    config = load(Experiment, DEMO)
    save_checkpoint(path, Checkpoint(config, both.classes, tensors, tensors, {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fusion.method=none"], "2 streams are given, but fusion.method none needs 1"),
        pytest.param(
            ["--fusion.method=average", "--head.width=64"],
            "does not fit this model",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--fusion.method=average", "--head.heads=2"],
            "head.heads was 4, is 2",
            marks=pytest.mark.slow,
        ),
        (["--fusion.method=average", "--direction=reversed"], "streams are forward and reversed"),
        (["--fusion.method=calibrated", "--head.learns=true"], "set head.learns false"),
        (["--fusion.method=average", *SECOND_EVERYWHERE], "train/e2e.py"),
    ],
)
def test_streams_that_do_not_fit_are_refused(
    streams: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    both = ["--checkpoint", streams / "forward.pt", streams / "reversed.pt"]
    rest = ["--cache", streams / "cache", "--out", tmp_path]
    done = script("train/heads.py", *both, *rest, *arguments)
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.slow
def test_a_fusion_never_takes_the_place_of_what_it_is_made_of(
    streams: Path, tmp_path: Path
) -> None:
    source = tmp_path / "last.pt"
    shutil.copy(streams / "forward.pt", source)
    both = ["--checkpoint", source, streams / "reversed.pt", "--cache", streams / "cache"]
    common = ["train/heads.py", *both, "--fusion.method=average", "--resume"]
    done = script(*common, "--out", tmp_path)
    assert done.returncode == 1 and "is what this run starts from" in done.stderr
    assert source.read_bytes() == (streams / "forward.pt").read_bytes()
    good(*common, "--out", tmp_path / "fused")
    good(*common, "--out", tmp_path / "fused")  # the same again
    done = script(*common, "--fusion.pairing=index", "--out", tmp_path / "fused")
    assert done.returncode == 1 and "belongs to another run" in done.stderr
