"""Weights that are no numbers, wrapped in other programs' names, or that torch complains about."""

import collections
import datetime
import json
import re
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.loader import load
from configs.messages import format_error, plain_line
from extract.backbone.pretrained import load_trunk
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.layouts import find_networks
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import read_tensors
from extract.checkpoints.wrappers import unwrap
from extract.feature_files import read_array
from extract.tada.frame_resnet import FrameResNet, FrameResNetConfig
from extract.tada.pretrained import load_tada, recognise_tada
from extract.tada.tada2d import TAda2D, TAda2DConfig
from tests.forks import script
from tests.layouts import SMALL, hugging_face, mmaction, pretraining, random_backbone, videomae
from tests.marks import quick_only
from tests.test_detector import select_candidates
from tests.test_e2e import DEMO, QUICK
from tests.test_weights import demo, run_main, write_opentad
from train.config import Experiment
from train.detector.model import Detector
from train.detector.sources import build_detector
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.modeling.actionformer import HeadOutput

NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


def trunk_tensors() -> dict[str, Tensor]:
    return mmaction(random_backbone().trunk.state_dict())


# ------------------------------------------------------------------ numbers that are none


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_weights_that_are_no_numbers_are_not_loaded(value: float, dtype: torch.dtype) -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bad = {name: tensor.clone() for name, tensor in before.items()}
    for number in range(7):
        spoilt = bad[f"{number}.weight"].clone()
        spoilt[0, 1] = value
        bad[f"{number}.weight"] = spoilt.to(dtype)
    with pytest.raises(ValueError, match=r"^x\.pt: 7 of 20 tensors hold .*0\.weight") as error:
        load_state_dict_strict(module, bad, "x.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_integers_and_empty_tensors_are_numbers() -> None:
    module = nn.BatchNorm1d(3)
    module.register_buffer("none", torch.zeros(0))
    load_state_dict_strict(module, module.state_dict(), "x.pt")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_pretrained_weights_that_are_no_numbers(tmp_path: Path, suffix: str, value: float) -> None:
    state = trunk_tensors()
    state["backbone.blocks.1.norm1.bias"][3] = value
    path = tmp_path / f"x.{suffix}"
    torch.save({"state_dict": state}, path) if suffix == "pth" else save_file(state, path)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors .*blocks\.1\.norm1\.bias"):
        load_trunk(VideoMAE(SMALL), path)


def test_what_is_not_loaded_need_not_be_numbers(tmp_path: Path) -> None:
    state = trunk_tensors()
    state["cls_head.fc_cls.bias"][0] = torch.nan
    torch.save(state, tmp_path / "x.pth")
    load_trunk(VideoMAE(SMALL), tmp_path / "x.pth")


def test_weights_that_are_no_numbers_are_described_and_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = trunk_tensors()
    state["backbone.patch_embed.projection.bias"][0] = torch.inf
    torch.save(state, tmp_path / "x.pth")
    run_main(monkeypatch, tmp_path / "x.pth")
    assert re.search(r"not finite: trunk\.patch_embed\.bias", capsys.readouterr().out)
    with pytest.raises(SystemExit, match=r"cannot be converted.*trunk\.patch_embed\.bias"):
        run_main(monkeypatch, tmp_path / "x.pth", "--convert", tmp_path / "y.safetensors")
    network = TAda2D(TAda2DConfig(3, (1, 1, 1, 1), 8)).state_dict()
    network["stem.weight"][0, 0, 0, 0] = torch.nan
    torch.save(network, tmp_path / "tada.pth")
    with pytest.raises(SystemExit, match=r"cannot be converted.*not finite: stem\.weight"):
        run_main(monkeypatch, tmp_path / "tada.pth", "--convert", tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()
    with pytest.raises(ValueError, match=r"stem\.weight"):
        load_tada(tmp_path / "tada.pth")


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_checkpoint_that_diverged(tmp_path: Path, part: str) -> None:
    config, path = demo(tmp_path), tmp_path / "last.pt"
    state = Detector(config, ("a",)).state_dict()
    good = Checkpoint(config, ("a",), state, state, {})
    save_checkpoint(path, good)
    name = next(n for n in state if n.endswith("class_out.weight"))
    spoilt = state | {name: torch.full_like(state[name], torch.nan)}
    before = path.read_bytes()
    # A run that diverged in its last update keeps its last good file, and says so.
    with pytest.raises(FloatingPointError, match=rf"{re.escape(name)}.*training\.lr"):
        spoilt_part = good._replace(model=spoilt) if part == "model" else good._replace(ema=spoilt)
        save_checkpoint(path, spoilt_part)
    assert path.read_bytes() == before and [p.name for p in tmp_path.glob("*.pt*")] == ["last.pt"]
    fields = torch.load(path, weights_only=True)
    torch.save(fields | {part: spoilt}, path)
    with pytest.raises(ValueError, match=rf"1 of \d+ tensors .*{re.escape(name)}"):
        load_checkpoint(path, Experiment)


@pytest.mark.parametrize("part", ["classes", "model", "ema", "training", "frame_rates", "config"])
def test_parts_of_another_kind_are_told(tmp_path: Path, part: str) -> None:
    config, path = demo(tmp_path), tmp_path / "last.pt"
    state = Detector(config, ("a",)).state_dict()
    save_checkpoint(path, Checkpoint(config, ("a",), state, state, {}))
    torch.save(torch.load(path, weights_only=True) | {part: 5}, path)
    with pytest.raises(ValueError, match=r"last\.pt is of another version"):
        load_checkpoint(path, Experiment)
    with suppress(ValueError):  # no tensors
        read_tensors(path)


def test_scores_that_are_no_numbers_are_no_empty_result(tmp_path: Path) -> None:
    """Finite weights may overflow, in fp16 most of all."""
    mask = torch.ones(2, 8, dtype=torch.bool)
    logits, distances = torch.zeros(2, 3, 8), torch.ones(2, 2, 8)
    config = demo(tmp_path).evaluation
    assert len(select_candidates(HeadOutput((logits,), (distances,), (mask,)), config)) == 2
    for spoilt in (logits, distances):
        bad = spoilt.clone()
        bad[1, 1, 4] = torch.nan
        given = (bad if spoilt is logits else logits, bad if spoilt is distances else distances)
        with pytest.raises(FloatingPointError, match=r"training\.precision"):
            select_candidates(HeadOutput((given[0],), (given[1],), (mask,)), config)


# ------------------------------------------------------------------ prefixes

PREFIXES = (
    *("_orig_mod.", "module.", "model.", "net.", "module._orig_mod.", "_orig_mod.module."),
    *("model._orig_mod.", "net.module.", "_forward_module.model.", "_fsdp_wrapped_module."),
)
SMALL_TADA = TAda2DConfig(3, (1, 1, 1, 1), 8)


def trunks() -> dict[str, dict[str, Tensor]]:
    trunk = random_backbone().trunk.state_dict()
    layouts: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
        "mmaction": mmaction,
        "videomae": videomae,
        "pretraining": pretraining,
        "hugging face": hugging_face,
        "ours": lambda own: {f"trunk.{name}": tensor for name, tensor in own.items()},
    }
    return {name: layout(trunk) for name, layout in layouts.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapped_names_are_the_plain_ones(tmp_path: Path, prefix: str) -> None:
    for name, state in trunks().items():
        torch.save(state, tmp_path / "plain.pth")
        torch.save(
            {
                "state_dict": {prefix + key: tensor for key, tensor in state.items()},
                "hyper_parameters": {"lr": 0.1},
                "pytorch-lightning_version": "2.5.0",
            },
            tmp_path / "wrapped.ckpt",
        )
        (plain,), (wrapped,) = (find_networks(tmp_path / f) for f in ("plain.pth", "wrapped.ckpt"))
        assert (plain.layout, plain.why) == (wrapped.layout, wrapped.why), name
        for ours, theirs in ((plain.backbone, wrapped.backbone), (plain.dropped, wrapped.dropped)):
            assert ours.keys() == theirs.keys(), name
            assert all(torch.equal(t, theirs[n]) for n, t in ours.items()), name
        load_trunk(VideoMAE(SMALL), tmp_path / "wrapped.ckpt")


@pytest.mark.parametrize("prefix", quick_only(PREFIXES, *PREFIXES[:2]))
def test_wrapped_detectors_and_other_networks(tmp_path: Path, prefix: str) -> None:
    config = demo(tmp_path)
    write_opentad(tmp_path / "opentad.pth", config, 2)
    opentad = torch.load(tmp_path / "opentad.pth", weights_only=True)["state_dict_ema"]
    plain = {name.removeprefix("module."): t for name, t in opentad.items()}
    ours = Detector(config, ("a", "b")).state_dict()
    for state in (plain, ours):
        torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "x.pth")
        torch.save(state, tmp_path / "y.pth")
        (found,), (wanted,) = find_networks(tmp_path / "x.pth"), find_networks(tmp_path / "y.pth")
        assert found.head.keys() == wanted.head.keys() and len(found.head) > 20
        assert found.backbone.keys() == wanted.backbone.keys()
    tada = TAda2D(SMALL_TADA).state_dict()
    torch.save({prefix + name: tensor for name, tensor in tada.items()}, tmp_path / "x.pth")
    tada_found = recognise_tada(read_tensors(tmp_path / "x.pth"), "x.pth")
    assert tada_found is not None and tada_found.tensors.keys() == tada.keys()
    resnet = FrameResNet(FrameResNetConfig(2, (1, 1, 1, 1), 8)).resnet.state_dict()
    torch.save({prefix + name: tensor for name, tensor in resnet.items()}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").tensors.keys() == resnet.keys()


def test_wrapped_names_in_shards(tmp_path: Path) -> None:
    """One shard alone may have a prefix that the whole has not."""
    state = {f"model.{n}": t for n, t in trunks()["hugging face"].items()}
    names = sorted(state)
    shards = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, keys in shards.items():
        save_file({key: state[key].contiguous() for key in keys}, tmp_path / file)
    places = {key: file for file, keys in shards.items() for key in keys}
    index = json.dumps({"weight_map": places})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    load_trunk(VideoMAE(SMALL), tmp_path)
    both = {"model.a": torch.zeros(1)}, {"criterion.b": torch.zeros(1)}
    for file, tensors in zip(shards, both, strict=True):
        save_file(tensors, tmp_path / file)
    places = {"model.a": "a.safetensors", "criterion.b": "b.safetensors"}
    index = json.dumps({"weight_map": places})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert set(read_tensors(tmp_path).tensors) == set(places)


@pytest.mark.parametrize("prefix", quick_only(PREFIXES, *PREFIXES[2:4]))
def test_our_own_checkpoint_with_wrapped_names(tmp_path: Path, prefix: str) -> None:
    config = demo(tmp_path)
    state = Detector(config, ("a",)).state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    save_checkpoint(tmp_path / "x.pt", Checkpoint(config, ("a",), wrapped, wrapped, {}))
    restored = Detector.from_checkpoint(tmp_path / "x.pt").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in restored.items())
    assert load_checkpoint(tmp_path / "x.pt", Experiment).model.keys() == state.keys()


def test_a_part_that_was_compiled_is_found() -> None:
    state = {"backbone._orig_mod.blocks.0.w": torch.zeros(1), "head.out.w": torch.zeros(1)}
    assert set(unwrap(state)) == {"backbone.blocks.0.w", "head.out.w"}
    # Two copies of a network are not one.
    both = {"_orig_mod.w": torch.zeros(1), "w": torch.zeros(1)}
    assert set(unwrap(both)) == set(both)
    # A part's own name is none of a wrapper's.
    parts = {"model.w": torch.zeros(1), "criterion.w": torch.zeros(1)}
    assert set(unwrap(parts)) == set(parts)
    assert set(unwrap({"submodel.w": torch.zeros(1)})) == {"submodel.w"}
    assert unwrap({}) == {}


def test_prefixes_that_do_not_fit_all_are_named(tmp_path: Path) -> None:
    tada = TAda2D(SMALL_TADA).state_dict()
    mixed = {f"model.{name}": tensor for name, tensor in tada.items()}
    torch.save({"state_dict": mixed | {"criterion.weight": torch.zeros(3)}}, tmp_path / "x.ckpt")
    said = rf"model\. \({len(mixed)}\), criterion\. \(1\)"
    with pytest.raises(ValueError, match=said):
        find_networks(tmp_path / "x.ckpt")
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    named = {f"student.{name}": tensor for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"4 .*fit without 'student\.'"):
        load_state_dict_strict(module, named | {"loss.w": torch.zeros(1)}, "x.pt")


# ------------------------------------------------------------------ what programs leave, and torch


def foreign(name: str, base: type, patch: pytest.MonkeyPatch) -> type:
    """A class of a program that is not installed."""
    module, _, kind = name.rpartition(".")
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        patch.setitem(sys.modules, part, types.ModuleType(part))
    made = type(kind, (base,), {"__module__": module})
    setattr(sys.modules[module], kind, made)
    return made


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "yacs.config.CfgNode",
        "easydict.EasyDict",
    ],
)
def test_hyper_parameters_of_lightning_are_no_obstacle(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = foreign(name, dict, monkeypatch)
    saved = {
        "hyper_parameters": kind(lr=0.1, since=datetime.timedelta(1)),
        "callbacks": {"best": collections.defaultdict(list, a=[1])},
        "state_dict": {f"model.{n}": t for n, t in trunk_tensors().items()},
    }
    torch.save(saved, tmp_path / "x.ckpt")
    monkeypatch.undo()
    assert find_networks(tmp_path / "x.ckpt")[0].layout == "mmaction2 VideoMAE"


class Unknown:
    """A class that no reader knows."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [Unknown(), {"x": Unknown()}, collections.ChainMap({}), {"x": collections.deque([1])}, 1 + 2j],
    ids=lambda content: type(content).__name__,
)
def test_torchs_own_text_reaches_nobody(tmp_path: Path, content: Any, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (read_tensors, read_array):
        with pytest.raises(ValueError, match=r"x\.pt") as error:
            read(path)
        said = str(error.value)
        assert "\x1b" not in said and "\n" not in said and said.isprintable()
        assert "Weights only" not in said and "weights_only" not in said
        assert len(said) < 400


def test_texts_of_others_are_plain_and_whole() -> None:
    text = "Load failed. \x1b[1mDo this only\x1b[0m if\n\tyou\x07 trust it. " + "word " * 100
    line = plain_line(text, 90)
    assert line.startswith("Load failed. Do this only if you trust it. word")
    assert len(line) <= 90 and line.endswith("word …")
    assert plain_line("short") == "short"
    assert "\x1b" not in format_error(ValueError("\x1b[31mred\x1b[0m")) != ""
    assert plain_line("x" * 200, 50) == "x" * 49 + "…"


# ------------------------------------------------------------------ nothing found


@pytest.mark.slow
def test_an_evaluation_that_finds_nothing_says_so(tmp_path: Path, data: list[str]) -> None:
    config = load(Experiment, DEMO, [*QUICK, *data, f"--out={tmp_path / 'run'}"])
    names = tuple(Path(config.data.classes or "").read_text().split())
    state = build_detector(config, names).state_dict()
    path = tmp_path / "last.pt"
    save_checkpoint(path, Checkpoint(config, names, state, state, {}))
    done = script("evaluate/run.py", "--checkpoint", path, "--evaluation.min_score=0.99")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "not one segment was found in" in done.stderr and "min_score 0.99" in done.stderr
    out = tmp_path / "evaluation" / f"last-{config.data.test_subset}"
    assert (out / "metrics.json").is_file() and (out / "report.html").is_file()
    # The same of a file of predictions.
    command = ["evaluate/run.py", "--predictions", out / "predictions.json", "--subset", "test"]
    done = script(*command, "--annotations", config.data.annotations)
    assert done.returncode == 1 and "not one segment was found in" in done.stderr
    # Where no truth contradicts, nothing may be right: it is said, and how near it came.
    video = next(Path(config.data.videos).glob("test*"))
    done = script("evaluate/detect.py", video, "--checkpoint", path, "--threshold", "0.99", "--cpu")
    assert done.returncode == 0, done.stderr
    assert re.search(r"no segment reaches --threshold 0\.99; the best score is 0\.\d+", done.stdout)
    done = script(
        *("evaluate/detect.py", video, "--checkpoint", path, "--cpu"), "--evaluation.min_score=0.99"
    )
    assert done.returncode == 0 and "not one segment was found in" in done.stdout
