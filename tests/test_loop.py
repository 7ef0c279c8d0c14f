"""What an update does, sees and says: its seeds, its losses, and that it never waits."""

from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm import tqdm

import train.detector.training
import train.engine.loop
from configs.loader import load
from evaluate.reports.metrics_file import read_metrics
from tests.test_e2e import DEMO, QUICK, build
from tests.waits import Copies, Operations
from train.config import Experiment
from train.data.batch import Batch
from train.detector.training import DetectionTask
from train.engine import checkpoint_writer
from train.engine.checkpoint import load_checkpoint
from train.engine.checkpoint_writer import CheckpointWriter
from train.engine.loop import TrainingRun, _seed, _seed_generators
from train.engine.optim import describe_updates
from train.modeling.actionformer import ActionFormer
from train.modeling.config import HeadConfig
from train.modeling.losses import Losses, detection_losses
from train.modeling.points import Targets, pyramid_mask
from train.tracking.metrics_log import MetricsLog


@dataclass(frozen=True)
class _Score:
    """Stands in for what a validation returns."""

    average: float

    def to_dict(self) -> dict[str, Any]:
        return {"average": self.average}


ONE_EPOCH = ["--training.stop_epoch=1", "--data.validation_subset=null"]
SINGLE = [*ONE_EPOCH, "--training.global_batch=1"]
AUGMENTED = ["--pixels.rand_augment=15", "--pixels.colour_jitter=[0.5, 0.5, 0.5, 0.1]"]
TWICE = ["--training.global_batch=2", "--training.accumulate=2"]  # of one window each


def prepare(
    data: list[str], out: Path, accelerator: Accelerator, *overrides: str
) -> TrainingRun[DetectionTask]:
    return build(load(Experiment, DEMO, [*data, *QUICK, *overrides, f"--out={out}"]), accelerator)


def batches_of(run: TrainingRun[DetectionTask]) -> list[Batch]:
    run.wrapped.train()
    return list(islice(iter(run.loader), run.config.training.accumulate))


def watched_update(run: TrainingRun[DetectionTask]) -> list[str]:
    """Return what would have made the host wait in an update after the first."""
    batches = batches_of(run)
    run.update(0, batches)  # states and tables are made
    with Operations() as operations, Copies() as copies:
        run.update(1, batches)
    return [*operations.seen, *copies.seen]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_never_waits_for_the_device(
    data: list[str], tmp_path: Path, precision: str
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="no" if precision == "fp32" else precision)
    accumulated = [*TWICE, f"--training.precision={precision}", *AUGMENTED]
    run = prepare(data, tmp_path, accelerator, *SINGLE, *accumulated)
    assert watched_update(run) == []
    AcceleratorState._reset_state(reset_partial_state=True)


READS = {
    "float": lambda loss: float(loss),
    "condition": lambda loss: bool(loss > 0),
    "item": lambda loss: loss.item(),
    "cpu": lambda loss: loss.cpu(),
    "to": lambda loss: loss.to("cpu"),
    "list": lambda loss: loss.reshape(1).tolist(),
    "mask": lambda loss: loss.reshape(1)[loss.reshape(1) > 0],
    "nonzero": lambda loss: loss.reshape(1).nonzero(),
    "unique": lambda loss: loss.unique(),
    "equal": lambda loss: torch.equal(loss, loss),
}


@pytest.mark.parametrize("read", READS)
def test_an_update_that_waits_is_found(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    read: str,
) -> None:
    def curious(*inputs: Any) -> Losses:
        losses = detection_losses(*inputs)
        READS[read](losses.regression.detach())
        return losses

    monkeypatch.setattr(train.detector.training, "detection_losses", curious)
    assert watched_update(prepare(data, tmp_path, accelerator, *SINGLE)) != []


def test_points_are_valid_where_the_head_says_so() -> None:
    head = ActionFormer(8, 3, HeadConfig(width=16, heads=2, levels=4))
    mask = torch.arange(32) < torch.tensor([[32], [21], [1]])
    output = head(torch.randn(3, 8, 32), mask)
    assert torch.equal(pyramid_mask(mask, 4), output.flat()[2])


def test_no_two_draws_share_a_seed() -> None:
    seeds = {_seed(*numbers) for numbers in product(range(3), range(40), range(4), range(8))}
    assert len(seeds) == 3 * 40 * 4 * 8


def test_seeds_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    of_gpu = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed", of_gpu.append)
    for kind in ("cpu", "cuda"):
        _seed_generators(torch.device(kind), 2**40 + 7)
        ours = torch.rand(3)
        torch.default_generator.manual_seed(2**40 + 7)
        assert torch.equal(ours, torch.rand(3))
        assert of_gpu == [2**40 + 7] * (kind == "cuda")


def test_every_micro_batch_has_a_seed_of_its_own(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(data, tmp_path, accelerator, *SINGLE, *TWICE)
    batches, seeds = batches_of(run), list[int]()
    monkeypatch.setattr(
        train.engine.loop, "_seed_generators", lambda device, seed: seeds.append(seed)
    )
    for step in (0, 1, 0):
        run.update(step, batches)
    assert len(set(seeds[:4])) == 4 and seeds[4:] == seeds[:2]


def test_a_line_of_metrics_is_the_mean_since_the_last_one(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines alone change nothing in what is learned: only how many updates share one."""
    prepare(data, tmp_path / "rare", accelerator, *SINGLE).train()
    monkeypatch.setattr(train.engine.loop, "LOG_EVERY", 1)
    prepare(data, tmp_path / "often", accelerator, *SINGLE).train()
    rare, *rest = read_metrics(tmp_path / "rare/metrics.jsonl")
    often = read_metrics(tmp_path / "often/metrics.jsonl")
    assert not rest
    assert [line["step"] for line in often] == [1, 2, 3, 4] and rare["step"] == 4
    for name in ("loss", "classification", "regression"):
        mean = sum(line[name] for line in often) / 4
        assert rare[name] == pytest.approx(mean, rel=1e-5) and often[0][name] != often[3][name]
    assert rare["lr"] == often[3]["lr"]


def test_an_update_counts_all_positives_before_it_divides(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(data, tmp_path, accelerator, *SINGLE, *TWICE)
    counts: list[Tensor] = []
    update = run.task.normaliser.update

    def counted(positives: Tensor) -> None:
        counts.append(positives)
        update(positives)

    monkeypatch.setattr(run.task.normaliser, "update", counted)
    batches = batches_of(run)
    run.update(0, batches)
    valid = [pyramid_mask(batch.mask, run.task.levels) for batch in batches]
    each = [
        int(((run.task.targets(batch)[0].classes > 0).any(-1) & mask).sum())
        for batch, mask in zip(batches, valid, strict=True)
    ]
    assert [count.tolist() for count in counts] == [[sum(each)]] and min(each) > 0


def test_the_first_bad_micro_batch_is_named(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at late, but later ones are bad only because it was."""
    calls: list[int] = []

    def diverging(output: Any, targets: Targets, *of: float) -> Losses:
        calls.append(1)
        poison = Tensor([torch.nan if len(calls) >= 3 else 1.0])[0]
        return Losses(*(loss * poison for loss in detection_losses(output, targets, *of)))

    monkeypatch.setattr(train.detector.training, "detection_losses", diverging)
    run = prepare(data, tmp_path, accelerator, *SINGLE, *TWICE)
    positions = [position for _, position in run.sampler]
    names = [run.loader.dataset.items[position].name for position in positions]  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match=f"on windows of {names[2]};"):
        run.train()
    assert len(calls) == 4 and not (tmp_path / "last.pt").exists()


def test_a_run_says_how_many_updates_it_has(
    data: list[str], tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(data, tmp_path, accelerator, *SINGLE).train()
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == "4 updates an epoch, 4 in all"
    assert second.startswith("warning: 4 updates are few") and "training.epochs" in second
    assert describe_updates(100, 5) == "100 updates an epoch, 500 in all"
    assert "warning: 499 updates are few" in describe_updates(1, 499)
    assert describe_updates(1, 500) == "1 update an epoch, 500 in all"


@pytest.mark.slow
def test_workers_change_nothing_that_is_learned(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    for workers in (0, 2):
        chosen = f"--training.workers={workers}"
        prepare(data, tmp_path / str(workers), accelerator, *ONE_EPOCH, chosen).train()
    one, two = (
        load_checkpoint(tmp_path / name / "last.pt", Experiment).model for name in ("0", "2")
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_only_a_better_validation_replaces_the_best(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal ones the earlier stays: that which took less training."""
    run = prepare(data, tmp_path, accelerator)
    run.log, run.bar = MetricsLog(tmp_path, False, 0, True), tqdm(disable=True)
    scores = iter([0.25, 0.25, 0.125, 0.5])
    monkeypatch.setattr(run.task, "validate", lambda: (_Score(next(scores)), 0))
    kept = []
    for weight in range(4):
        for tensor in run.average.tensors.values():
            tensor.fill_(weight)
        run._validate()
        run.writer.wait()
        best = load_checkpoint(tmp_path / "best.pt", Experiment).ema
        (values,) = {float(best[name].flatten()[0]) for name in run.average.tensors}
        kept.append(values)
    assert kept == [0, 0, 0, 3] and run.best == 0.5


def test_a_lost_process_is_told_of_wherever_it_is_noticed(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it not only in steps: when they begin, and when they add up their counts."""

    def lose(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:47300")

    told = pytest.raises(OSError, match="another process of this run ended unexpectedly")
    run = prepare(data, tmp_path, accelerator, *SINGLE)
    run.epochs = 0  # nothing but the end is left to do
    monkeypatch.setattr(run.task, "log_counts", lose)
    with told:
        run.train()
    monkeypatch.setattr(accelerator, "prepare", lose)
    with told:
        prepare(data, tmp_path, accelerator, *SINGLE)


def test_a_killed_run_goes_on_from_what_it_wrote_once(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(data, tmp_path / "whole", accelerator, *SINGLE).train()
    monkeypatch.setattr(checkpoint_writer, "WORTH_SHARING", 1)
    parts = tmp_path / "parts"
    with monkeypatch.context() as killed:
        killed.setattr(CheckpointWriter, "finish", lambda self, folder: None)
        prepare(data, parts, accelerator, *SINGLE).train()
    assert len([*parts.glob("frozen-*.pt")]) == 1
    config = load(Experiment, DEMO, [*data, *QUICK, *SINGLE, f"--out={parts}"])
    build(config, accelerator, resume=True).train()  # nothing but the end is left to do
    assert not [*parts.glob("frozen-*.pt")]
    expected, found = (
        load_checkpoint(tmp_path / name / "last.pt", Experiment) for name in ("whole", "parts")
    )
    assert [*found.model] == [*expected.model]
    for one, other in ((expected.model, found.model), (expected.ema, found.ema)):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
