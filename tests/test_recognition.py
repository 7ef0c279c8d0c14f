"""Action recognition: networks, weights, the training run, and the scripts as users run them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from configs.loader import dump, flatten, load, parse
from evaluate.metrics.accuracy import LabelSet
from evaluate.reports.metrics_file import read_metrics
from extract.demo import DemoConfig, write_clips
from extract.scenes import ACTIONS
from extract.settings.network import NetworkConfig
from extract.tada.networks import build_network
from tests import tada
from tests.conftest import REPOSITORY
from tests.encodings import write_numbered
from tests.forks import good, script
from tests.test_configs import leaves
from tests.test_gradients import run
from train.config import Experiment
from train.data.loading import EpochSampler
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.engine.loop import TrainingRun
from train.engine.optim import Average, batch_norm_statistics
from train.recognition.config import Recognition, RecognitionTraining
from train.recognition.dataset import (
    Example,
    TrainingViews,
    collate_views,
    load_examples,
    read_clips,
)
from train.recognition.recogniser import Recogniser, recogniser_from_weights
from train.recognition.training import (
    RecognitionTask,
    build_recognition_optimizer,
    score_examples,
    share_loader,
)

CONFIGS = sorted((REPOSITORY / "configs/recognition").glob("*.yaml"))
DEMO = REPOSITORY / "configs/recognition/demo.yaml"
QUICK = [
    "--network.width=8",
    "--views.frames=5",
    "--crops.train_short_side=[36, 44]",
    "--crops.train_size=32",
    "--crops.test_short_side=36",
    "--crops.test_size=32",
    "--training.epochs=4",
    "--training.stop_epoch=4",
    "--training.warmup_epochs=1",
    "--training.global_batch=4",
    "--training.validate_from=2",
    "--training.validate_every=2",
    "--training.workers=0",
]
CONVNEXT = ["--network.name=tada_convnextv2", "--network.dropout=0", "--training.clip_norm=1e9"]
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SETS = (LabelSet("", ACTIONS),)
SIZES = NetworkConfig("tada2d", (1, 1, 1, 1), 8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that point an experiment to a few trimmed clips."""
    folder = tmp_path_factory.mktemp("clips") / "actions"
    write_clips(folder, DemoConfig(2, validation=1, test=2, shortest=0.8, longest=1.4))
    return [f"--data.annotations={folder}"]


def config_of(*overrides: object, file: Path = DEMO) -> Recognition:
    return load(Recognition, file, [*QUICK, *map(str, overrides)])


def image_resnet(classes: int) -> nn.Module:
    return ResNet(Bottleneck, (1, 1, 1, 1), num_classes=classes)  # type: ignore[arg-type]


def examples_of(config: Recognition, *subsets: str) -> list[list[Example]]:
    return [*load_examples(config.data, read_clips(config.data), subsets)]


def shaken(network: nn.Module) -> Any:
    """Give every tensor something to do: new routes and averages begin with none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = 0.3 if "up.weight" in name or "scales" in name else 0.05
                tensor.add_(scale * (noise.abs() if name.endswith("var") else noise))
    return network.eval()


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_experiments_are_dumped_whole(file: Path) -> None:
    config = load(Recognition, file)
    assert leaves(yaml.safe_load(dump(config))) == set(flatten(config))
    assert parse(Recognition, dump(config)) == config
    assert "#   accelerate launch train/recognise.py" in file.read_text()


def test_published_sizes_are_those_of_the_configs() -> None:
    for name, classes, parameters in (
        ("tada2d_r50_k400", 400, 27_485_472),
        ("tada2d_r50_ssv2", 174, 27_022_398),
        ("tada2d_r50_ek100", 97 + 300, 27_479_325),
        ("tada_convnextv2_t_k400", 400, 45_971_488),
    ):
        config = load(Recognition, REPOSITORY / f"configs/recognition/{name}.yaml")
        with torch.device("meta"):
            network = build_network(config.network, classes)
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert config.crops.crops == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--network.name=tada2d", "--views.frames=2"], "tada2d needs at least 3"),
        (["--network.name=tada_convnextv2", "--views.frames=4"], "needs at least 5"),
        (["--network.drop_path=1"], "network.drop_path"),
        (["--network.blocks=[1, 0]"], "network.blocks"),
        (["--training.momentum=1"], "training.momentum"),
        (["--training.lr=-1"], "must not be negative"),
        (["--evaluation.batch_size=0"], "evaluation.batch_size"),
        (["--out="], "give the run a folder"),
        (["--network.nam=resnet"], "did you mean 'network.name'"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(*overrides)


# ------------------------------------------------------------------ networks and weights


@torch.inference_mode()
def test_only_the_control_does_not_see_the_order_of_frames() -> None:
    clip = torch.randint(0, 256, (2, 3, 6, 32, 32), dtype=torch.uint8)
    for name in ("tada2d", "tada_convnextv2", "resnet"):
        network = shaken(build_network(replace(SIZES, name=name), 5))
        forward, back = network(clip), network(clip.flip(2))
        assert forward.shape == (2, 5)
        assert torch.allclose(forward, back, atol=1e-4) == (name == "resnet")
        features = network.features(clip)
        assert features.shape[:2] == (2, network.width)


@torch.inference_mode()
def test_the_control_is_timms_network_averaged_over_frames() -> None:
    network = shaken(build_network(NetworkConfig("resnet", (1, 1, 1, 1), 64), 3))
    image = image_resnet(0).eval()
    image.load_state_dict(network.resnet.state_dict())
    clip = torch.randint(0, 256, (1, 3, 4, 48, 48), dtype=torch.uint8)
    frames = (clip[0].transpose(0, 1) / 255 - 0.45) / 0.225
    mean = torch.stack([image(frame[None])[0] for frame in frames]).mean(0)
    torch.testing.assert_close(network(clip)[0], network.classifier(mean))


@pytest.mark.parametrize("name", ["tada2d", "resnet"])
def test_an_image_resnet_begins_both(tmp_path: Path, name: str) -> None:
    image = image_resnet(11)
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    sizes = replace(SIZES, name=name, width=64)  # type: ignore[arg-type]
    recogniser = Recogniser(replace(config_of(), network=sizes), SETS)
    head = recogniser.network.classifier.weight.clone()
    said = recogniser.load_weights(tmp_path / "image.safetensors")
    assert "a ResNet for images; its classifier is new" in said
    weights = {t.flatten()[0].item() for t in recogniser.network.state_dict().values()}
    assert {
        t.flatten()[0].item() for n, t in image.state_dict().items() if "fc" not in n
    } <= weights
    assert torch.equal(head, recogniser.network.classifier.weight)


def published(path: Path, shapes: tada.Shapes) -> dict[str, Tensor]:
    """Write a file as the TAdaConv project does; its averaged weights are the ones that count."""
    tensors = tada.drawn(shapes)
    raw = {name: torch.zeros_like(t) for name, t in tensors.items()}
    content = {"epoch": 5, "model_state": raw, "model_ema_state": tensors, "optimizer_state": {}}
    torch.save(content, path)
    return tensors


def test_a_published_checkpoint_gets_a_new_head_for_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "k.pyth"
    theirs = published(path, tada.tada2d(6, SIZES.blocks, SIZES.width))
    for sets, kept in ((SETS, True), ((LabelSet("", ("a", "b")),), False)):
        torch.manual_seed(3)
        recogniser = Recogniser(config_of(), sets)
        head = recogniser.network.classifier.weight.clone()
        said = recogniser.load_weights(path)
        assert f"its classifier is {'kept' if kept else 'new'}" in said
        own = recogniser.network.state_dict()
        assert torch.equal(own["classifier.weight"], theirs["head.out.weight"] if kept else head)
        assert torch.equal(own["stem.weight"], theirs["backbone.conv1.a.weight"].squeeze(2))


def test_a_checkpoint_of_ours_keeps_its_head_for_the_same_classes(tmp_path: Path) -> None:
    first = Recogniser(config_of(), SETS)
    tensors = {n: t.clone() for n, t in shaken(first.network).state_dict().items()}
    save_checkpoint(
        tmp_path / "a.pt", Checkpoint(first.config, first.classes, tensors, tensors, {})
    )
    for classes, said in ((ACTIONS, "kept"), (ACTIONS[::-1], "new")):
        other = Recogniser(config_of(), (LabelSet("", classes),))
        assert f"classifier is {said}" in other.load_weights(tmp_path / "a.pt")
        same = torch.equal(other.network.classifier.weight, tensors["classifier.weight"])
        assert same == (said == "kept")
        assert torch.equal(other.network.state_dict()["stem.weight"], tensors["stem.weight"])
    again = Recogniser.from_checkpoint(tmp_path / "a.pt")
    clip = torch.randint(0, 256, (1, 3, 5, 32, 32), dtype=torch.uint8)
    assert torch.equal(again.network(clip), first.network(clip))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_python_computes_in_the_precision_of_the_training(tmp_path: Path, precision: str) -> None:
    recogniser = Recogniser(config_of(f"--training.precision={precision}"), SETS)
    seen = set[torch.dtype]()
    recogniser.network.eval().classifier.register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype)
    )
    write_numbered(tmp_path / "video.mp4", 40)
    recogniser.recognise(tmp_path / "video.mp4")
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    recogniser = Recogniser(config_of(), SETS)
    published(tmp_path / "k.pyth", tada.tada2d(6, (1, 2, 1, 1), 16))
    published(tmp_path / "c.pyth", tada.convnext(6, (1, 1, 1, 1), (8, 16, 32, 64)))
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    image = image_resnet(11)
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    for name, message in (
        ("k.pyth", r"network.blocks \[1, 2, 1, 1\] and network.width 16"),
        ("c.pyth", "set network.name tada_convnextv2"),
        ("x.safetensors", "no weights for a network 'tada2d'"),
        ("image.safetensors", "does not fit this model"),
        ("absent.pt", "no checkpoint at"),
    ):
        with pytest.raises(ValueError, match=message):
            recogniser.load_weights(tmp_path / name)


def test_a_published_checkpoint_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ek.pyth"
    published(path, tada.two_tasks(tada.tada2d(1, SIZES.blocks, SIZES.width), (2, 3)))
    recogniser = recogniser_from_weights(path, config_of("--network.width=16"), ())
    assert [(each.name, len(each.classes)) for each in recogniser.sets] == [
        ("verb", 2),
        ("noun", 3),
    ]
    for kind, names in (("verb", "take\nput\n"), ("noun", "cup\npan\n")):
        (tmp_path / f"{kind}s.txt").write_text(names)
    lists = [tmp_path / "verbs.txt", tmp_path / "nouns.txt"]
    with pytest.raises(ValueError, match="has 2 and 3 classes, but the lists 2 and 2"):
        recogniser_from_weights(path, config_of(), lists)
    lists[1].write_text("cup\npan\nlid\n")
    named = recogniser_from_weights(path, config_of(), lists)
    assert named.classes == ("verb:take", "verb:put", "noun:cup", "noun:pan", "noun:lid")
    with pytest.raises(ValueError, match="neither a checkpoint of train"):
        save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
        recogniser_from_weights(tmp_path / "x.safetensors", config_of(), ())


# ------------------------------------------------------------------ optimizer and averages


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_classifier_has_a_rate_of_its_own(kind: Any) -> None:
    network = build_network(SIZES, 4)
    training = RecognitionTraining(lr=0.3, backbone_lr=0.1, weight_decay=0.02, optimizer=kind)
    optimizer = build_recognition_optimizer(network, training)
    names = {p: name for name, p in network.named_parameters()}
    seen: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert names[p] not in seen
            seen[names[p]] = group["lr"], group["weight_decay"]
    assert seen.keys() == set(names.values())
    for name, (lr, decay) in seen.items():
        assert lr == (0.3 if name.startswith("classifier.") else 0.1)
        assert decay == (0.02 if network.get_parameter(name).ndim > 1 else 0)
    assert optimizer.param_groups[0]["lr"] == 0.3  # the one that is logged
    assert type(optimizer).__name__.lower() == kind


def test_running_statistics_travel_with_the_average() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    average = Average(network, 0.75)
    assert batch_norm_statistics(network).keys() == {
        f"{k}.running_{x}" for k in (1, 2) for x in ("mean", "var")
    }
    # The averages of an exponential decay whose weights add up to 1: nothing of the start is left.
    summed = {name: torch.zeros_like(t) for name, t in network.state_dict().items()}
    for _ in range(3):
        network(torch.randn(8, 2))
        average.update()
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                summed[name] = 0.75 * summed[name] + 0.25 * tensor
    expected = {name: tensor / (1 - 0.75**3) for name, tensor in summed.items()}
    own = {name: t.clone() for name, t in network.state_dict().items()}
    with average.applied():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, expected[name])
    assert all(torch.equal(t, own[name]) for name, t in network.state_dict().items())


# ------------------------------------------------------------------ samples


@pytest.mark.slow
def test_a_flipped_clip_has_the_mirrored_label(clips: list[str]) -> None:
    config = config_of(*clips, "--crops.train_short_side=[32, 32]", "--views.jitter=false")
    (training,) = examples_of(config, "training")
    plain = TrainingViews(training, replace(config, crops=replace(config.crops, flip=0.0)), SETS)
    turned = TrainingViews(training, replace(config, crops=replace(config.crops, flip=1.0)), SETS)
    mirror = {"SlideRight": "SlideLeft", "TurnRight": "TurnLeft"}
    mirror |= {b: a for a, b in mirror.items()}
    names = sorted(ACTIONS)
    sets = (LabelSet("", tuple(names)),)
    plain, turned = (TrainingViews(training, d.config, sets) for d in (plain, turned))
    for position, example in enumerate(training):
        one, two = plain[(3, position)], turned[(3, position)]
        assert one.views.shape == (1, 1, 3, 5, 32, 32) and one.videos == (example.name,)
        assert torch.equal(two.views, one.views.flip(-1))
        label = names[int(one.labels)]
        assert label == example.item.path.parent.name
        assert names[int(two.labels)] == mirror.get(label, label)


@pytest.mark.slow
def test_directions_are_the_same_frames_in_opposite_order(clips: list[str]) -> None:
    forward, back = config_of(*clips), config_of(*clips, "--direction=reversed")
    (training,) = examples_of(forward, "training")
    sets = read_clips(forward.data).sets
    for key in ((0, 0), (2, 5)):
        one, two = (TrainingViews(training, config, sets)[key] for config in (forward, back))
        assert torch.equal(one.views.flip(3), two.views) and torch.equal(one.labels, two.labels)


@pytest.mark.slow
def test_samples_depend_on_epoch_and_position_alone(clips: list[str]) -> None:
    config = config_of(*clips)
    (training,) = examples_of(config, "training")
    views = TrainingViews(training, config, read_clips(config.data).sets)
    first = views[(1, 4)]
    views[(0, 0)]
    assert torch.equal(views[(1, 4)].views, first.views)
    assert not torch.equal(views[(2, 4)].views, first.views)


def test_a_broken_video_is_stood_in_for_or_stops(clips: list[str], tmp_path: Path) -> None:
    config = config_of(*clips)
    (training,) = examples_of(config, "training")
    gone = replace(training[1], item=replace(training[1].item, path=tmp_path / "gone.mp4"))
    broken = [training[0], gone, training[2]]
    sets = read_clips(config.data).sets
    with pytest.raises(ValueError, match=r"gone\.mp4"):
        TrainingViews(broken, config, sets)[(0, 1)]
    skipping = replace(config, data=replace(config.data, bad_videos="skip"))
    sample = TrainingViews(broken, skipping, sets)[(0, 1)]
    assert sample.videos == (training[2].name,) and "gone.mp4" in sample.problems[0]
    recogniser = Recogniser(skipping, sets)
    recogniser.network.eval()
    accelerator = Accelerator(cpu=True)
    loader = share_loader(recogniser, broken, accelerator)
    scores, skipped = score_examples(recogniser, broken, loader, accelerator, "")
    assert list(scores) == [0, 2] and skipped.keys() == {gone.name}


def test_scores_are_means_over_views(clips: list[str], accelerator: Accelerator) -> None:
    """However many views go through the network at once."""
    config = config_of(*clips, "--views.clips=3", "--crops.crops=2")
    (test,) = examples_of(config, "test")
    sets = read_clips(config.data).sets
    recogniser = Recogniser(config, sets)
    shaken(recogniser.network)
    found = []
    for size in (1, 4, 64):
        recogniser.config = replace(config, evaluation=replace(config.evaluation, batch_size=size))
        loader = share_loader(recogniser, test[:3], accelerator)
        scores, _ = score_examples(recogniser, test[:3], loader, accelerator, "")
        found.append(np.stack([scores[k] for k in range(3)]))
    batch = next(iter(loader))
    assert batch.views.shape == (3, 6, 3, 5, 32, 32)
    with torch.inference_mode():
        each = [torch.stack([recogniser.network(v[None])[0] for v in clip]) for clip in batch.views]
    expected = torch.stack([views.double().softmax(1).mean(0) for views in each]).numpy()
    for scores_ in found:
        np.testing.assert_allclose(scores_, expected, atol=1e-6)


# ------------------------------------------------------------------ runs


def build(config: Recognition, accelerator: Accelerator, resume: bool = False) -> Any:
    torch.manual_seed(config.training.seed)
    training, validation = examples_of(config, "training", "validation")
    recogniser = Recogniser(config, read_clips(config.data).sets)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    task = RecognitionTask(recogniser, training, validation, accelerator)
    return TrainingRun(task, accelerator, resume)


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "sgd"])
def test_a_resumed_run_is_the_run_that_would_have_been(
    clips: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    random = ["--network.dropout=0.3", "--network.drop_path=0.2", "--training.accumulate=2"]
    chosen = [*clips, *random, "--training.global_batch=4", f"--training.optimizer={optimizer}"]
    chosen += ["--training.ema_decay=0.5"]  # for 12 updates; a longer reach is shortened to none
    config = config_of(*chosen, f"--out={tmp_path / 'whole'}")
    build(config, accelerator).train()
    broken = replace(config, out=str(tmp_path / "broken"))
    interrupted = build(broken, accelerator)
    train_epoch = TrainingRun._train_epoch

    def stop(self: Any) -> None:
        train_epoch(self)
        if self.epoch == 2:  # the third, after the last checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    monkeypatch.undo()
    build(broken, accelerator, resume=True).train()
    curves = []
    for folder in (tmp_path / "whole", tmp_path / "broken"):
        lines = read_metrics(folder / "metrics.jsonl")
        curves.append([{k: v for k, v in x.items() if k != "seconds_per_step"} for x in lines])
    assert curves[0] == curves[1] and sum("validation" in line for line in curves[0]) == 2
    whole, other = (
        load_checkpoint(tmp_path / f"{x}/last.pt", Recognition) for x in ("whole", "broken")
    )
    for part in ("model", "ema"):
        for name, tensor in getattr(whole, part).items():
            assert torch.equal(tensor, getattr(other, part)[name]), f"{part} {name}"
    moved = [
        n for n in whole.ema if "running" in n and not torch.equal(whole.ema[n], whole.model[n])
    ]
    assert moved  # the averages have statistics of their own


def test_a_loss_is_that_of_the_common_batch(
    clips: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    """Two label sets are two losses; micro-batches count their share."""
    config = config_of(*clips, f"--out={tmp_path}", "--training.label_smoothing=0.1")
    sets = (LabelSet("verb", ("a", "b")), LabelSet("noun", ("c", "d", "e")))
    (training,) = examples_of(config, "training")
    two = [replace(e, labels=(k % 2, k % 3)) for k, e in enumerate(training[:4])]
    without = replace(config, data=replace(config.data, mirrored=()))
    task = RecognitionTask(Recogniser(without, sets), two, None, accelerator)
    assert task.losses == ("verb", "noun")
    samples = [task.dataset[(0, k)] for k in range(4)]
    task.model.eval()
    whole = task.loss(task.model, task.prepare([collate_views(samples)])[0])
    halves = task.prepare([collate_views(samples[:2]), collate_views(samples[2:])])
    parts = sum(task.loss(task.model, half) for half in halves)
    torch.testing.assert_close(parts, whole)
    with torch.no_grad():
        logits = task.model(collate_views(samples).views[:, 0])
    for number, (part, classes) in enumerate(((logits[:, :2], 2), (logits[:, 2:], 3))):
        expected = 0.0
        for row, example in zip(part.log_softmax(1), two, strict=True):
            target = torch.full((classes,), 0.1 / classes)
            target[example.labels[number]] += 0.9
            expected -= float((target * row).sum()) / 4
        assert float(whole[number].detach()) == pytest.approx(expected, rel=1e-5)


def two_processes(*arguments: object) -> str:
    return run(sys.executable, *TWO_PROCESSES, *map(str, arguments))


@pytest.mark.slow
def test_two_processes_learn_as_one(clips: list[str], tmp_path: Path) -> None:
    common = ["train/recognise.py", "--config", DEMO, *QUICK, *clips, *CONVNEXT]
    common += ["--training.stop_epoch=1", "--data.validation_subset=null"]
    good(*common, f"--out={tmp_path / 'one'}", "--training.global_batch=4")
    two_processes(*common, f"--out={tmp_path / 'two'}", "--training.global_batch=4")
    one, two = (load_checkpoint(tmp_path / f"{x}/last.pt", Recognition) for x in ("one", "two"))
    states = [run_.training["optimizer"]["state"] for run_ in (one, two)]
    assert len(states[0]) == len(states[1]) > 0
    for index, entry in states[0].items():
        ours, theirs = entry["exp_avg"].double(), states[1][index]["exp_avg"].double()
        assert (ours - theirs).norm() <= 1e-4 * ours.norm() + 1e-9
    for name, tensor in one.model.items():
        torch.testing.assert_close(two.model[name], tensor, rtol=0, atol=1e-4)
    losses = [read_metrics(tmp_path / f"{x}/metrics.jsonl")[0]["loss"] for x in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_share_what_their_batch_norms_counted(
    clips: list[str], tmp_path: Path
) -> None:
    """In the first update all statistics are those of the first weights: to be made again here."""
    config = config_of(*clips, "--training.global_batch=6", "--data.validation_subset=null")
    torch.manual_seed(5)
    sets = read_clips(config.data).sets
    start = Recogniser(config, sets)
    save_file(start.network.state_dict(), tmp_path / "start.safetensors")
    two_processes(
        *("train/recognise.py", "--config", DEMO, *QUICK, *clips, "--training.global_batch=12"),
        *("--training.stop_epoch=1", "--data.validation_subset=null", f"--out={tmp_path / 'run'}"),
        f"--network.weights={tmp_path / 'start.safetensors'}",
    )
    saved = load_checkpoint(tmp_path / "run/last.pt", Recognition)
    (training,) = examples_of(config, "training")
    views = TrainingViews(training, config, sets)
    counted = []
    for rank in (0, 1):
        samples = [views[key] for key in EpochSampler(len(views), 12, rank, 2, seed=0)]
        assert len(samples) == 6  # one update
        network = Recogniser(config, sets).network
        network.load_state_dict(start.network.state_dict())
        network.train()(collate_views(samples).views[:, 0])
        counted.append(batch_norm_statistics(network))
    assert len(counted[0]) == 2 * (1 + 4 * 6)  # stem; every block's six, one a shortcut's
    for name, one in counted[0].items():
        mean = (one + counted[1][name]) / 2
        torch.testing.assert_close(saved.model[name], mean, rtol=1e-4, atol=1e-6)
        # The average of one update is what it led to: the initial statistics have no share.
        torch.testing.assert_close(saved.ema[name], mean, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ scripts


@pytest.fixture(scope="module")
def trained(clips: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the real script."""
    out = tmp_path_factory.mktemp("runs") / "run"
    printed = good("train/recognise.py", "--resume", "--config", DEMO, *QUICK, *clips, "--out", out)
    assert "12 training clips, 6 classes" in printed and f"report: {out / 'report.html'}" in printed
    return out


def test_a_run_leaves_everything_behind(trained: Path) -> None:
    lines = read_metrics(trained / "metrics.jsonl")
    checks = [line["validation"] for line in lines if "validation" in line]
    assert len(checks) == 2 and all(0 <= c["top1"] <= c["top5"] <= 1 for c in checks)
    assert {"loss", "classification", "lr"} <= lines[0].keys()
    for name in ("last.pt", "best.pt"):
        checkpoint = load_checkpoint(trained / name, Recognition)
        assert checkpoint.classes == tuple(sorted(ACTIONS))
        assert checkpoint.config == load(Recognition, trained / "config.yaml")
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((trained / "skipped_videos.json").read_text()) == {}


@pytest.mark.slow
def test_a_list_of_clips_is_scored(trained: Path, clips: list[str], tmp_path: Path) -> None:
    arguments = ["evaluate/recognise.py", "--checkpoint", trained / "last.pt", "--reversed"]
    arguments += ["--views.clips", "2", "--crops.crops=3"]
    printed = good(*arguments, "--out", tmp_path / "one")
    metrics = json.loads((tmp_path / "one/metrics.json").read_text())
    found = json.loads((tmp_path / "one/predictions.json").read_text())["results"]
    assert len(found) == metrics["clips"] == 12
    right = [best[0]["label"] == Path(name).parent.name for name, best in found.items()]
    in_five = [Path(n).parent.name in [b["label"] for b in best] for n, best in found.items()]
    assert metrics["top1"] == pytest.approx(np.mean(right))
    assert metrics["top5"] == pytest.approx(np.mean(in_five))
    time = metrics["reversed"]
    assert time.keys() == {"top1_on_reversed", "within_pairs", "within_pairs_on_reversed"}
    assert f"top-1 {metrics['top1']:.4f}" in printed and "within pairs on reversed: " in printed
    assert (tmp_path / "one/confusion.png").read_bytes().startswith(b"\x89PNG")

    two_processes(*arguments, "--out", tmp_path / "two")
    for file in ("metrics.json", "predictions.json"):
        one, two = (json.loads((tmp_path / f"{x}/{file}").read_text()) for x in ("one", "two"))
        assert (one == two) if file == "metrics.json" else (one.keys() == two.keys())

    # A few files of two of the classes are a list, too; one of them is broken.
    few = tmp_path / "few"
    for name in list(found)[:5]:
        put = few / "test" / Path(name).parent.name
        put.mkdir(parents=True, exist_ok=True)
        (put / Path(name).name).symlink_to(name)
    (put / "broken.mp4").write_bytes(b"nothing")
    few_of = ["--data.annotations", few, "--data.bad_videos", "skip"]
    printed = good(*arguments, "--out", tmp_path / "few_out", *few_of)
    assert "warning: 1 of 6 clips were skipped and do not count" in printed
    fewer = json.loads((tmp_path / "few_out/metrics.json").read_text())
    assert fewer["clips"] == 5 and fewer["top1"] == pytest.approx(np.mean(right[:5]))

    # The same from Python, and from the script on a file.
    video = next(iter(found))
    printed = good(*arguments[:3], "--views.clips", "2", "--crops.crops", "3", video)
    saved = load_checkpoint(trained / "last.pt", Recognition)
    views = replace(saved.config.views, clips=2)
    wide = replace(saved.config, views=views, crops=replace(saved.config.crops, crops=3))
    best = Recogniser.restore(saved._replace(config=wide), trained).recognise(video)[""]
    for (label, value), entry in zip(best, found[video], strict=True):
        assert label == entry["label"] and value == pytest.approx(entry["score"], abs=1e-5)
        assert f"{value:.4f}  {label}" in printed


def test_a_published_checkpoint_names_what_a_video_shows(clips: list[str], tmp_path: Path) -> None:
    path = tmp_path / "ssv2.pyth"
    published(path, tada.tada2d(6, SIZES.blocks, SIZES.width))
    labels = {f"Doing [{k}]": str(k) for k in range(6)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    video = next(Path(clips[0].split("=")[1]).rglob("*.mp4"))
    common = ["evaluate/recognise.py", video, "--checkpoint", path, "--config", DEMO, *QUICK]
    printed = good(*common, "--classes", tmp_path / "labels.json")
    assert printed.count("Doing [") == 5
    assert good(*common).count("class ") == 5
    for arguments, message in (
        (common[:4], "has no settings: add --config"),
        ([*common, "--classes", tmp_path / "absent.json"], "no file"),
    ):
        done = script(*arguments)
        assert done.returncode == 1 and message in done.stderr, done.stderr


def test_wrong_uses_are_told_in_a_line(trained: Path, clips: list[str], tmp_path: Path) -> None:
    detector = tmp_path / "detector.pt"
    config = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    save_checkpoint(detector, Checkpoint(config, ("a",), {}, {}, {}))
    (tmp_path / "no.mp4").write_bytes(b"")
    last = trained / "last.pt"
    no_pairs = "--data.reversed_labels=[]"
    other = tmp_path / "other.csv"
    other.write_text("video,label,subset\na,Run,test\n")
    for arguments, message in (
        (["evaluate/recognise.py", "--checkpoint", detector], "is a detector's checkpoint"),
        (["evaluate/run.py", "--checkpoint", last], "an action recogniser's checkpoint"),
        (["evaluate/recognise.py", tmp_path / "no.mp4", "--checkpoint", last], "no.mp4"),
        (["evaluate/recognise.py", "--checkpoint", tmp_path / "x.pt"], "no checkpoint at"),
        (
            ["evaluate/recognise.py", "--checkpoint", last, "--reversed", no_pairs],
            "name the classes",
        ),
        (
            ["evaluate/recognise.py", "--checkpoint", last, "--subset", "tset"],
            "did you mean 'test'",
        ),
        (["evaluate/recognise.py", "--checkpoint", last, "--network.width=16"], "another network"),
        (
            ["evaluate/recognise.py", "--checkpoint", last, f"--data.annotations={other}"],
            "trained on another dataset",
        ),
        (
            ["train/recognise.py", "--config", DEMO, *QUICK, *clips, "--out", trained],
            "holds a run already",
        ),
        (
            [
                *("train/recognise.py", "--config", DEMO, *QUICK, *clips, "--out", trained),
                *("--resume", "--training.lr=0.5"),
            ],
            "training.lr was 0.003, is 0.5",
        ),
        (
            [
                *("train/recognise.py", "--config", DEMO, *clips, f"--out={tmp_path / 'n'}"),
                "--data.mirrored=[[Run, Jump]]",
            ],
            "data.mirrored: there is no class 'Run'",
        ),
    ):
        done = script(*arguments)
        assert done.returncode == 1, done.stdout
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert message in line and "Traceback" not in done.stderr, done.stderr
