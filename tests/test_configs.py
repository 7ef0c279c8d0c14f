"""Experiments say what differs and are valid; wrong settings are refused with the nearest name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.loader import base_of, dump, flatten, load, parse
from tests.conftest import REPOSITORY
from train.ablation.grid import read_grid
from train.config import Experiment
from train.recognition.config import Recognition

FILES = sorted(
    file for room in ("e2e", "features") for file in (REPOSITORY / "configs" / room).rglob("*.yaml")
)
LAID_OVER = sorted((REPOSITORY / "configs/fusion").glob("*.yaml"))
GRIDS = sorted((REPOSITORY / "configs/ablate").glob("*.yaml"))
DEMO = REPOSITORY / "configs/e2e/demo/forward.yaml"
MODES = ("adapter", "frozen", "full")


def leaves(content: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in content.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


KINDS: dict[str, type[Any]] = {"Experiment": Experiment, "Recognition": Recognition}
# Settings that came after the table, or whose default has changed since, with their reason.
REQUIRED = "out: x\ndata: {annotations: x, videos: x}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_files_say_only_what_differs(kind: str) -> None:
    rooms = ("recognition",) if kind == "Recognition" else ("e2e", "features")
    files = [file for room in rooms for file in (REPOSITORY / "configs" / room).rglob("*.yaml")]
    found = {file: flatten(load(KINDS[kind], file)) for file in files}
    default = flatten(parse(KINDS[kind], REQUIRED))
    for file, own in found.items():
        base = base_of(file)
        under = found[base.resolve()] if base else default
        said = leaves(yaml.safe_load(file.read_text())) - {"base"}
        assert not {name for name in said if own[name] == under[name]}, file


def test_a_file_laid_over_its_base(tmp_path: Path) -> None:
    low, mine = tmp_path / "low.yaml", tmp_path / "mine.yaml"
    low.write_text(REQUIRED + "training: {lr: 0.5, workers: 7, seed: 3}\n")
    mine.write_text("base: low.yaml\ntraining: {workers: 8, seed: 4}\n")
    training = load(Experiment, mine, ["--training.seed=5"]).training
    assert (training.lr, training.workers, training.seed, training.epochs) == (0.5, 8, 5, 100)
    for under, over, message in (
        (REQUIRED + "base: x.yaml", "base: low.yaml", r"mine\.yaml.*low\.yaml has a base itself"),
        (REQUIRED, "base: absent.yaml", r"mine\.yaml: there is no file .*absent\.yaml"),
        (REQUIRED, "base: [low.yaml]", r"mine\.yaml: 'base' is the name of one"),
        (REQUIRED + "heat: {}", "base: low.yaml", r"low\.yaml: unknown setting 'heat'"),
        (REQUIRED + "head: 1", "base: low.yaml", r"low\.yaml: 'head' is a group"),
        (
            "head: {}",
            "base: low.yaml",
            r"mine.*missing: out, data\.annotations, data\.videos",
        ),
    ):
        low.write_text(under)
        mine.write_text(over)
        with pytest.raises(ValueError, match=message):
            load(Experiment, mine)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_experiment_is_dumped_whole(file: Path) -> None:
    config = load(Experiment, file)
    assert leaves(yaml.safe_load(dump(config))) == set(flatten(config))
    assert parse(Experiment, dump(config)) == config
    first = file.read_text().splitlines()
    assert any(line.startswith("#   accelerate launch") for line in first[:6])


@pytest.mark.slow
def test_thumos_files_differ_only_where_their_names_say() -> None:
    folder = REPOSITORY / "configs/e2e/thumos14"
    assert len(list(folder.glob("*.yaml"))) == 33
    names = {f"videomae_{size}_{mode}": mode for size in "sblh" for mode in MODES}
    names |= {f"videomaev2_g_{long}adapter": "adapter" for long in ("", "1536_")}
    names |= {"videomae_s_side": "side", "videomaev2_g_1536_side": "side"}
    for name, mode in names.items():
        forward = load(Experiment, folder / f"{name}_forward.yaml")
        backward = load(Experiment, folder / f"{name}_reversed.yaml")
        assert forward.backbone.mode == mode
        same = replace(backward, direction="forward", out=forward.out, fusion=forward.fusion)
        assert same == forward and backward.direction == "reversed"
        assert forward.sampling.samples == (1536 if "1536" in name else 768)
    both = load(Experiment, folder / "videomae_h_adapter_both.yaml")
    single = load(Experiment, folder / "videomae_h_adapter_forward.yaml")
    assert both.directions == ("forward", "reversed")
    assert replace(both, fusion=single.fusion, out=single.out) == single


@pytest.mark.parametrize("file", LAID_OVER, ids=lambda file: file.stem)
def test_fusions_are_laid_over_an_experiment(file: Path) -> None:
    demo = load(Experiment, DEMO)
    frozen = replace(demo.backbone, trainable_from_block=demo.backbone.trunk.depth)
    base = replace(demo, head=replace(demo.head, learns=False), backbone=frozen)
    config = load(Experiment, file, base=base)
    assert (config.fusion.method == "none") == (file.stem == "distilled")
    assert config.data == base.data
    assert f"--config configs/fusion/{file.name}" in file.read_text()
    with pytest.raises(ValueError, match="out"):
        load(Experiment, file)


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_grids_can_be_read(file: Path) -> None:
    assert read_grid(file).fusions


def test_overrides_win() -> None:
    config = load(
        Experiment,
        DEMO,
        [
            *("--training.lr", "3e-4", "--evaluation.nms.sigma=0.9"),
            *("--sampling.crop", "[0.5, 1.0]", "--head.attention_window=[17, 9, 9, null, null]"),
        ],
    )
    assert config.training.lr == 3e-4
    assert config.evaluation.nms.sigma == 0.9
    assert config.sampling.crop == (0.5, 1.0)
    assert config.head.attention_window == (17, 9, 9, None, None)
    assert parse(Experiment, dump(config)) == config


@pytest.mark.parametrize(
    ("given", "updates", "fps"),
    [
        ({}, 3000, 7.5),
        ({"training.epochs": 4}, None, 7.5),
        ({"training.epochs": 4, "training.updates": 70}, 70, 7.5),
        ({"training.stop_epoch": 4}, 3000, 7.5),  # of the schedule that `epochs` has
        ({"sampling.snippet_stride": 8}, 3000, None),
        ({"sampling.snippet_stride": 8, "sampling.fps": 5.0}, 3000, 5.0),
    ],
)
def test_what_is_given_alone_is_not_outdone_by_the_file(
    given: dict[str, float], updates: int | None, fps: float | None, tmp_path: Path
) -> None:
    """Where one of two settings decides, a file's other one would win without a word."""
    own = REPOSITORY / "configs/e2e/own.yaml"
    separate = [part for name, value in given.items() for part in (f"--{name}", f"{value}")]
    nested: dict[str, Any] = {"base": "own.yaml"}
    for name, value in given.items():
        group, setting = name.split(".")
        nested.setdefault(group, {})[setting] = value
    (tmp_path / "own.yaml").write_text(own.read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    for config in (
        load(Experiment, own, separate),
        load(Experiment, own, [f"--{name}={value}" for name, value in given.items()]),
        load(Experiment, tmp_path / "mine.yaml"),
    ):
        assert (config.training.updates, config.sampling.fps) == (updates, fps)
        assert parse(Experiment, dump(config)) == config
    # Configs of fusions give the shape of a schedule, whatever the checkpoint's run was.
    taught = load(Experiment, "configs/fusion/distilled.yaml", base=load(Experiment, own)).training
    assert (taught.epochs, taught.updates) == (20, 3000)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--training.learnig_rate", "1"],
            r"unknown setting 'training.learnig_rate'; did you mean",
        ),
        (["--sampling.windowsize=5"], "did you mean 'sampling.window_size'"),
        (["--training.lr", "fast"], r"command line: training\.lr: expected number, not fast$"),
        (["--training.lr", "null"], r"command line: training\.lr: expected number, not null$"),
        (["--training.updates", "1.5"], r"updates: expected whole number or null, not 1\.5$"),
        (["--training.precision", "f8"], r"expected fp32 or tf32 or bf16 or fp16, not f8$"),
        (["--data.blocked", "a"], r"data\.blocked: expected list of text in brackets, not a$"),
        (["--training.trackers", "[x]"], r"trackers: expected list of \(tensorboard or .*, not x$"),
        (["--training", "3"], "'training' is a group of settings, not 3$"),
        (["--sampling.crop", "[0.9]"], r"sampling\.crop: expected 2 × number, not \[0\.9\]$"),
        (["--sampling.window_size", "100"], "multiple of 16"),
        (["--direction", "sideways"], "direction(?s:.)*forward"),
        (["--head.width", "130"], "not a multiple of heads"),
        (["--training.stop_epoch", "0"], "at least 1"),
        (["--training.warmup_start", "1"], "below 1"),
        (["--evaluation.tious", "[]"], "overlaps in"),
        (["--evaluation.tious", "[0.5, 2]"], "overlaps in"),
        (["--sampling.scale_factor", "0"], "at least 1"),
        (["--sampling.min_completeness", "7"], "min_completeness"),
        (["--pixels.flip", "2"], "probability"),
        (["--data.min_share", "1"], "data.min_share must be a share"),
        (["--head.attention_window", "[9, 9, null]"], "attention_window has 3 values"),
        (["--pixels.size", "8"], "at least one patch"),
        (["--head.levels", "9"], "multiple of 256"),
        (["--training.lr", "-1"], "must not be negative"),
        (["--backbone.trunk.depth", "0"], "at least 1"),
        (["--training.lr"], "command line"),
        (["--out", ""], "give the run a folder"),
        (["--data.frame_cache", ""], "data.frame_cache: give a folder"),
        (["--data.frame_cache_gb", "0"], "frame_cache_gb must be above 0"),
        (["--data.frame_cache_gb", ".nan"], "frame_cache_gb must be above 0"),
        (["--backbone.std", "[0, 0, 0]"], "backbone.std"),
        (["--backbone.trunk.drop_path", "2"], "drop_path"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(Experiment, DEMO, overrides)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config at .*absent\.yaml"):
        load(Experiment, tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("out: [1, 2")
    with pytest.raises(ValueError, match=r"broken\.yaml: not valid YAML: line 1: expected [^\n]*$"):
        load(Experiment, broken)
    with pytest.raises(ValueError, match=r"did you mean configs/e2e/demo/forward\.yaml\?"):
        load(Experiment, "configs/e2e/demo/forwrad.yaml")
    (tmp_path / "own.yaml").write_text("out: runs/own\n")
    with pytest.raises(ValueError, match=rf"did you mean {tmp_path}/own\.yaml\?"):
        load(Experiment, tmp_path / "own.yml")
    for text, message in (
        (DEMO.read_text() + "\nout: twice\n", "'out' is given twice"),
        ("training: null", "'training' is a group of settings, not None"),
        ("head: [1]", "'head' is a group of settings"),
        (DEMO.read_text() + "\ndirection: null\n", "direction: expected forward or reversed, not "),
    ):
        with pytest.raises(ValueError, match=message):
            parse(Experiment, text)
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(DEMO.read_text().replace("  epochs:", "  end_epoch:"))
    with pytest.raises(ValueError, match=r"unknown setting 'training\.end_epoch'"):
        load(Experiment, unknown)
