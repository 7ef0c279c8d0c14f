"""Files of weights: read without running code, loaded strictly, described, converted."""

import argparse
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs import cli
from configs.loader import dump, load
from evaluate.annotations import Annotations
from extract.backbone.backbone import Backbone
from extract.backbone.pretrained import load_trunk
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.key_maps import head_to_opentad
from extract.checkpoints.layouts import find_networks
from extract.checkpoints.tensor_files import hash_files, read_tensors
from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.weights import main as weights_main
from tests.conftest import GOLDEN, REPOSITORY
from tests.forks import good
from tests.layouts import SMALL, hugging_face, mmaction, opentad, random_backbone, videomae
from train.config import Experiment
from train.data.items import Subset
from train.detector.model import Detector
from train.detector.opentad import checkpoint_from_opentad
from train.detector.setup import TrainingData, write_detector_record
from train.detector.sources import build_detector, merge_configs, read_source
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

GOLDEN_FILE = GOLDEN / "opentad_checkpoint.pth"


def tensors() -> dict[str, Tensor]:
    return mmaction(random_backbone().trunk.state_dict())


@pytest.fixture
def mmengine() -> Iterator[type]:
    """A stand-in for the module whose objects mmengine leaves in its checkpoints."""
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    modules = {name: types.ModuleType(name) for name in [*names, "mmengine.config.config"]}

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = np.array([1.0, 2.0])
            self.smallest = np.float64(1.0)
            self.methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> None: ...

    class ConfigDict(dict[str, Any]):
        pass

    for kind, place in ((HistoryBuffer, names[-1]), (ConfigDict, "mmengine.config.config")):
        kind.__module__, kind.__qualname__ = place, kind.__name__
        setattr(modules[place], kind.__name__, kind)
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = names[-1]
    HistoryBuffer.ConfigDict = ConfigDict  # type: ignore[attr-defined]
    sys.modules |= modules
    yield HistoryBuffer
    for name in modules:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_mmengine_leaves_is_read_without_it(
    tmp_path: Path, mmengine: Any, zipped: bool
) -> None:
    log = {"train/loss": mmengine(), "lr": np.float32(0.1)}
    meta = {"hub": log, "cfg": mmengine.ConfigDict(a=1), "args": argparse.Namespace(lr=1e-3)}
    content = {"meta": meta, "state_dict": tensors(), "message_hub": {"log_scalars": log}}
    path = tmp_path / "vit.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    with pytest.raises(Exception, match=r"mmengine|numpy|Weights only"):
        torch.load(path, weights_only=True)
    allowed = set(torch.serialization.get_safe_globals())
    found = read_tensors(path)
    assert found.part == "state_dict" and found.tensors.keys() == tensors().keys()
    assert not any(name.startswith("mmengine") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == allowed


class Evil:
    def __init__(self, function: Any, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "subprocess.getoutput"])
def test_a_file_that_would_run_code_is_refused_and_does_not(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    mark = tmp_path / "ran"
    harm = {
        "posix.system": Evil(os.system, f"touch {mark}"),
        "builtins.eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "subprocess.getoutput": Evil(subprocess.getoutput, f"touch {mark}"),
    }[name]
    path = tmp_path / "evil.pth"
    content = {"state_dict": tensors(), "meta": harm, "log": np.float64(1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"evil\.pth would run code to be read \({name}\)"):
        read_tensors(path)
    assert not mark.exists()


def test_files_that_are_no_weights_say_so_in_one_line(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "whole.pth")
    save_file({"x": torch.zeros(100)}, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(content[: len(content) // 2])
    flipped = bytearray((tmp_path / "whole.pth").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(flipped)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Quota exceeded</title>")
    (tmp_path / "noise.pth").write_bytes(bytes(range(255, 0, -1)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "packed.pth").write_bytes(b"././@PaxHeader" + bytes(600))
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a", "y": "../b"}}')
    for name, said in {
        "absent.pth": r"no checkpoint at .*; .*docs/weights.md .*videomae-small",
        "empty.pth": "is empty",
        "half-whole.pth": "is damaged or not a checkpoint: the end .* is missing; copy it again",
        "packed.pth": "is damaged or holds no weights",
        "half-whole.safetensors": "is damaged",
        "flipped.pth": "wrong checksum",
        "page.pth": "is a text that begins with '<!DOCTYPE html>",
        "noise.pth": "is damaged or holds no weights",
        "folder": "is a folder without weights",
        "nothing.pth": "holds no tensors",
        "list.pth": "holds no tensors",
        "shards": r"index\.json names [ab], [ab], which",
    }.items():
        with pytest.raises(ValueError, match=said) as error:
            read_tensors(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("this system does not say how its memory is used")
    (line,) = [x for x in status.read_text().splitlines() if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_tensors_stay_in_the_file(tmp_path: Path, suffix: str) -> None:
    config = TrunkConfig(width=384, depth=4, heads=6, image_size=64)
    state = mmaction(VideoMAE(config).state_dict())
    path = tmp_path / f"large.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    size = path.stat().st_size
    before = anonymous_bytes()
    read_tensors(path)  # imports what it needs
    held = find_networks(path)
    assert size > 28_000_000 and anonymous_bytes() - before < 0.2 * size
    backbone = Backbone(BackboneConfig(config, weights=str(path)))
    assert anonymous_bytes() - before < 0.2 * size
    load_trunk(backbone.trunk, path)
    assert anonymous_bytes() - before < 1.2 * size and held


def test_named_weights_come_without_random_ones(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(tensors(), path)
    trunk = random_backbone().trunk
    drawn = Backbone(BackboneConfig(SMALL, mode="full", trainable_from_block=1))
    named = Backbone(replace(drawn.config, weights=str(path)))
    with pytest.raises(Exception, match=r"meta"):  # used before it is loaded
        named(torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8))
    load_trunk(named.trunk, path)
    for (name, ours), own in zip(named.named_parameters(), drawn.parameters(), strict=True):
        assert ours.device.type == "cpu" and ours.requires_grad == own.requires_grad, name
    assert all(torch.equal(t, trunk.state_dict()[n]) for n, t in named.trunk.state_dict().items())


def test_another_size_is_told_with_what_to_set(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = mmaction(
            {
                "positions": torch.empty(1, 1568, 768),
                "patch_embed.bias": torch.empty(768),
                "patch_embed.weight": torch.empty(768, 1536),
            }
            | {f"blocks.{k}.mlp.fc1.weight": torch.empty(3072, 768) for k in range(12)}
        )
    save_file(
        {n: torch.zeros(t.shape, dtype=torch.uint8) for n, t in state.items()},
        tmp_path / "b.safetensors",
    )
    said = (
        r"b\.safetensors holds VideoMAE-B \(768 wide, 12 blocks\); the config has VideoMAE-S "
        r"\(384 wide, 12 blocks\): set backbone\.trunk\.width 768, backbone\.trunk\.heads 12$"
    )
    with pytest.raises(ValueError, match=said):
        load_trunk(VideoMAE(TrunkConfig(384, 12, 6)), tmp_path / "b.safetensors")


def test_position_tables_are_never_dropped(tmp_path: Path) -> None:
    trunk = random_backbone().trunk.state_dict()
    path = tmp_path / "x.pth"
    # Learned ones are taken as they are.
    learned = trunk | {"positions": torch.randn(1, 32, 32)}
    torch.save(mmaction(learned), path)
    own = VideoMAE(SMALL)
    load_trunk(own, path)
    assert torch.equal(own.positions, learned["positions"])
    # Of another grid.
    torch.save(mmaction(trunk | {"positions": torch.randn(1, 8 * 14**2, 32)}), path)
    with pytest.raises(
        ValueError, match=r"set backbone\.trunk\.image_size 224 \(.*1568 rows, as clips of 16 fr"
    ):
        load_trunk(VideoMAE(SMALL), path)
    load_trunk(VideoMAE(replace(SMALL, image_size=224)), path)
    # Of clips of another length.
    torch.save(mmaction(trunk | {"positions": torch.randn(1, 16 * 14**2, 32)}), path)
    with pytest.raises(
        ValueError,
        match=r"3136 rows, as clips of .*32 frames of 224 px.*; Palindrome's clips have 16",
    ):
        load_trunk(VideoMAE(SMALL), path)


def demo(out: Path, *overrides: str) -> Experiment:
    """The demo's experiment with a network that is small, and saved whole in `out`/full.yaml."""
    small = ["--backbone.trunk.width=32", "--backbone.trunk.depth=3", "--backbone.trunk.heads=2"]
    small += ["--backbone.trunk.image_size=32", "--pixels.size=32", "--backbone.weights=null"]
    small += ["--head.width=16", "--head.heads=2", "--head.levels=3", "--head.stem_blocks=1"]
    small += ["--sampling.window_size=32", f"--out={out / 'run'}"]
    config = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml", [*small, *overrides])
    (out / "full.yaml").write_text(dump(config))
    return config


def write_opentad(path: Path, config: Experiment, classes: int, seed: int = 0) -> Detector:
    """Write a random detector in OpenTAD's layout; the transformer is the same for all seeds."""
    names = tuple(f"class {number}" for number in range(classes))
    torch.manual_seed(0)
    detector = Detector(config, names)
    torch.manual_seed(seed)
    for name, parameter in detector.named_parameters():
        if ".trunk." not in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    (stream,) = detector.streams
    head = head_to_opentad(stream.head.state_dict())
    state = opentad(dict(stream.backbone.state_dict()), head)
    torch.save({"state_dict_ema": state, "epoch": 59}, path)
    return detector.eval()


def test_the_record_of_a_run_says_what_became_of_every_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": tensors()}, path)
    detector = build_detector(demo(tmp_path, f"--backbone.weights={path}"), ("a", "b"))
    data = TrainingData(Annotations({}, ("a", "b"), {}), ("a", "b"), Subset([], {}), None)
    write_detector_record(tmp_path, detector, data)
    record = json.loads((tmp_path / "weights.json").read_text())
    assert record["source"] == str(path) and record["layout"] == "mmaction2 VideoMAE"
    assert (
        record["sha256"] == hash_files([path])
        and record["size"] == "a VideoMAE (32 wide, 3 blocks)"
    )
    assert len(record["loaded"]) + len(record["dropped"]) == len(tensors())
    own = {f"streams.0.backbone.trunk.{name}" for name in record["loaded"]}
    assert own | set(record["new"]) == detector.state_dict().keys()
    assert "42 tensors loaded, 4 dropped" in capsys.readouterr().out


def test_a_whole_detector_gives_its_transformer(tmp_path: Path) -> None:
    config = demo(tmp_path)
    detector = write_opentad(tmp_path / "x.pth", config, 2)
    state = detector.state_dict()
    save_checkpoint(tmp_path / "x.pt", Checkpoint(config, ("a", "b"), {}, state, {}))
    for name in ("x.pth", "x.pt"):
        trunk = VideoMAE(SMALL)
        coverage = load_trunk(trunk, tmp_path / name)
        wanted = detector.get_submodule("streams.0.backbone.trunk").state_dict()
        assert all(torch.equal(t, wanted[n]) for n, t in trunk.state_dict().items())
        assert sum("only the transformer" in why for why in coverage.dropped.values()) > 50
        # The loss's normaliser and the last norm are OpenTAD's alone.
        every = len(coverage.loaded) + len(coverage.dropped)
        assert every == len(detector.state_dict()) + (3 if name == "x.pth" else 0)


def test_detectors_of_opentad_are_streams(tmp_path: Path) -> None:
    config = demo(tmp_path)
    (tmp_path / "classes.txt").write_text("run\njump\n")
    listed = f"--data.classes={tmp_path / 'classes.txt'}"
    files = [str(tmp_path / name) for name in ("F.pth", "R.pth")]
    originals = [write_opentad(Path(f), config, 2, seed) for seed, f in enumerate(files)]
    full = str(tmp_path / "full.yaml")
    overrides = ["--fusion.method=average", listed]
    sources = [(f, read_source(f, full, overrides, n)) for n, f in enumerate(files)]
    assert [saved.config.direction for _, saved in sources] == ["forward", "reversed"]
    fused = merge_configs(full, sources, overrides)
    assert fused.directions == ("forward", "reversed")
    assert not fused.head.learns and not fused.backbone.learns
    detector = build_detector(fused, ("run", "jump"), sources)
    for stream, original in zip(detector.streams, originals, strict=True):
        wanted = original.streams[0].state_dict()
        assert all(torch.equal(t, wanted[n]) for n, t in stream.state_dict().items())
    # One alone gives its backbone to a new head, which learns.
    alone = [(files[0], read_source(files[0], full, [listed]))]
    assert merge_configs(full, alone, [listed]).head.learns
    with pytest.raises(
        ValueError, match=r"R\.pth would be stream 2, but .*method none there are 1"
    ):
        read_source(files[1], full, [listed], 1)
    message = r"'OpenTAD detector', which has no settings: add --co.* pixels\.antialias false"
    with pytest.raises(ValueError, match=message):
        read_source(files[0], None)


def test_detectors_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    config = demo(tmp_path)
    write_opentad(tmp_path / "x.pth", config, 3)
    (network,) = find_networks(tmp_path / "x.pth")
    (tmp_path / "classes.txt").write_text("run\njump\n")
    unnamed = replace(config, data=replace(config.data, classes=None))
    named = replace(config, data=replace(config.data, classes=str(tmp_path / "classes.txt")))
    with pytest.raises(ValueError, match=r"does not name its 3 classes: set data\.classes to the"):
        checkpoint_from_opentad(network, unnamed, "x.pth")
    with pytest.raises(ValueError, match=r"has 3 classes, but .*classes\.txt names 2"):
        checkpoint_from_opentad(network, named, "x.pth")
    frozen = replace(named, backbone=replace(config.backbone, mode="frozen"))
    with pytest.raises(
        ValueError,
        match=r"mode adapter \(adapters at blocks 0 to 2\), but .* frozen; set it to adapter",
    ):
        checkpoint_from_opentad(network, frozen, "x.pth")
    with pytest.raises(ValueError, match="is not a detector: it has a transformer, but no head"):
        checkpoint_from_opentad(replace(network, head={}), named, "x.pth")


@pytest.mark.slow
def test_scripts_take_detectors_of_opentad(tmp_path: Path, data: list[str]) -> None:
    classes = len(Path(data[2].partition("=")[2]).read_text().split())
    config = demo(tmp_path, *data)
    files = [tmp_path / name for name in ("F.pth", "R.pth")]
    detectors = [write_opentad(f, config, classes, seed) for seed, f in enumerate(files)]
    full = ("--config", tmp_path / "full.yaml")
    said = good("evaluate/run.py", "--checkpoint", files[0], *full, "--out", tmp_path / "alone")
    assert "average mAP" in said
    cache = ("--cache", tmp_path / "cache")
    said = good("train/heads.py", "--checkpoint", *files, *full, "--fusion.method=average", *cache)
    assert "nothing to train" in said
    saved = load_checkpoint(tmp_path / "run/last.pt", Experiment)
    for number, detector in enumerate(detectors):
        for name, tensor in detector.state_dict().items():
            found = saved.ema[name.replace("streams.0.", f"streams.{number}.")]
            assert torch.equal(found, tensor), name
    both = ("--fusion.method=average", *cache, "--of", "test", "--plan")
    said = good("extract/run.py", "--checkpoint", *files, *full, *both)
    assert "clips to encode" in said


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, arguments)])
    cli.run(weights_main)


def test_the_script_says_what_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(videomae(random_backbone().trunk.state_dict()), tmp_path / "k400")
    run_main(monkeypatch, tmp_path / "k400")
    said = capsys.readouterr().out
    for part in (
        "VideoMAE, a VideoMAE (32 wide, 3 blocks)",
        "45 tensors, ",
        hash_files([tmp_path / "k400"])["k400"],
        "classifier of 400 classes, as Kinetics-400 has",
        "mode none",
        "backbone.trunk: width 32, depth 3, mlp_ratio 4, patch 16\n",
        "used: 41 tensors",
        "not used: head.bias, head.weight: the classifier of 400 classes, as Kinetics-400 has\n",
    ):
        assert part in said, part
    run_main(monkeypatch, GOLDEN_FILE)
    said = capsys.readouterr().out
    assert "OpenTAD detector" in said and "detector of 5 classes" in said
    assert "mode adapter: 2 adapters, blocks 0 to 1" in said
    assert "pixels.antialias: false" in said
    with pytest.raises(SystemExit, match="error: no checkpoint at"):
        run_main(monkeypatch, tmp_path / "absent")


def test_conversions_lead_back_to_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    run_main(monkeypatch, GOLDEN_FILE, "--convert", ours)
    run_main(monkeypatch, ours, "--convert", theirs)
    before = torch.load(GOLDEN_FILE, weights_only=True)["state_dict"]
    content = torch.load(theirs, weights_only=True)
    for after in (content["state_dict"], content["state_dict_ema"]):
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.safetensors", "theirs.pth"]


@pytest.mark.parametrize("mode", ["adapter", "side"])
def test_our_own_detector_is_one_for_opentad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Without what only OpenTAD has, which then begins as there; class names stay."""
    config = demo(tmp_path, f"--backbone.mode={mode}", "--backbone.adapters_from_block=1")
    original = write_opentad(tmp_path / "x.pth", config, 2)
    state = original.state_dict()
    save_checkpoint(tmp_path / "x.pt", Checkpoint(config, ("run", "jump"), {}, state, {}))
    run_main(monkeypatch, tmp_path / "x.pt", "--convert", tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors").keys() == {
        name.removeprefix("streams.0.").removeprefix("backbone.") for name in state
    }
    run_main(monkeypatch, tmp_path / "x.safetensors", "--convert", tmp_path / "again.pth")
    wanted = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict_ema"]
    found = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert found.keys() == wanted.keys()
    assert found.pop("module.rpn_head.loss_normalizer") == 100
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    saved = read_source(tmp_path / "x.safetensors", str(tmp_path / "full.yaml"))
    assert saved.classes == ("run", "jump")
    restored = Detector.restore(saved, "x.safetensors").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in restored.items())


def test_conversions_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(hugging_face(random_backbone().trunk.state_dict()), tmp_path / "x.safetensors")
    for out, said in {"x.bin": "must end in", "x.safetensors": "is the file itself"}.items():
        with pytest.raises(SystemExit, match=said):
            run_main(monkeypatch, tmp_path / "x.safetensors", "--convert", tmp_path / out)
    broken = {n: t for n, t in tensors().items() if "blocks.1.norm1" not in n}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(SystemExit, match=r"missing: trunk\.blocks\.1\.norm1\.bias"):
        run_main(monkeypatch, tmp_path / "broken.pth", "--convert", tmp_path / "y.pth")
    two = replace(demo(tmp_path), fusion=replace(demo(tmp_path).fusion, method="average"))
    state = Detector(two, ("a",)).state_dict()
    save_checkpoint(tmp_path / "two.pt", Checkpoint(two, ("a",), {}, state, {}))
    with pytest.raises(SystemExit, match="has 2 streams"):
        run_main(monkeypatch, tmp_path / "two.pt", "--convert", tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()
