"""Command lines: their help, and mistakes in them, which come before slow imports."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.loader import field_names
from configs.options import ScriptParser
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.recognition.config import Recognition

TEXT = "Do something.\n\n    python some/script.py --config FILE\n"
SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for stage in ("cache", "evaluate", "extract", "train")
    for path in (REPOSITORY / stage).glob("*.py")
    if "\ndef main(" in path.read_text()
)
WITHOUT_SETTINGS = {
    *("extract/demo.py", "extract/features.py", "extract/init.py", "extract/transcode.py"),
    "extract/weights.py",
    *("train/ablate.py", "train/pretrain.py"),
}
SLOW = ("torch", "zarr", "matplotlib", "sklearn", "timm", "accelerate")
# What each script needs beside a setting, to get as far as reading it.
NEEDED = {
    "cache/show.py": ["STORE", "--adopt", "X"],
    "evaluate/detect.py": ["VIDEO", "--checkpoint", "X"],
    "evaluate/diagnose.py": ["--checkpoint", "X"],
    "evaluate/recognise.py": ["--checkpoint", "X"],
    "evaluate/run.py": ["--checkpoint", "X"],
    "extract/run.py": ["--checkpoint", "X"],
    "train/heads.py": ["--checkpoint", "X"],
    "train/recognise.py": ["--config", "configs/recognition/demo.yaml"],
    "train/soup.py": ["--checkpoint", "X", "Y"],
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which processes print at their end what slow libraries they imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        f"atexit.register(lambda: print('slow:', [n for n in {SLOW} if n in sys.modules]))\n"
    )
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def run(script: str, arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_slow(script: str, environment: dict[str, str]) -> None:
    done = run(script, ["--help"], environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(script).name}")
    assert done.stdout.endswith("slow: []\n")
    assert ("--help GROUP" in done.stdout) == (script not in WITHOUT_SETTINGS)


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - WITHOUT_SETTINGS))
def test_a_misspelt_setting_is_refused_before_anything_slow(
    script: str, environment: dict[str, str]
) -> None:
    needed = NEEDED.get(script, ["--config", "configs/e2e/demo/forward.yaml"])
    done = run(script, [*needed, "--evaluation.batchsize", "2"], environment)
    assert done.returncode == 1
    assert done.stderr == (
        "error: command line: unknown setting 'evaluation.batchsize'; "
        "did you mean 'evaluation.batch_size'?\n"
    )
    assert done.stdout == "slow: []\n"


@pytest.mark.parametrize("script", ["train/heads.py", "evaluate/run.py", "evaluate/detect.py"])
def test_a_misspelt_setting_in_a_file_is_refused_before_anything_slow(
    script: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("training: {epoch: 3}\n")
    done = run(script, [*NEEDED[script], "--config", str(tmp_path / "mine.yaml")], environment)
    assert done.returncode == 1 and done.stdout == "slow: []\n"
    assert "mine.yaml: unknown setting 'training.epoch'; did you mean 'training.epochs'" in (
        done.stderr
    )


@pytest.mark.parametrize("kind", [Experiment, Recognition])
def test_help_lists_every_setting_with_type_default_and_meaning(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = ScriptParser(TEXT, kind).format_help()
    assert text.index("python some/script.py") < text.index("--help") < text.index("--direction")
    names = field_names(kind)
    leaves = [name for name in names if not any(n.startswith(f"{name}.") for n in names)]
    settings = " ".join(text.partition("settings, over")[2].split())
    for name in leaves:
        assert settings.count(f" --{name} ") == 1, name
        told = settings.partition(f" --{name} ")[2].partition(" --")[0]
        assert "; default: " in told or "; must be given)" in told, name


def test_help_of_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    words = " ".join(ScriptParser(TEXT, Experiment).format_group("training").split())
    assert "of heads and fusion (number; default: 0.0001)" in words
    assert "Settings of a detector's training." in words
    assert "fp32" in words


def test_help_of_one_group_lists_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ScriptParser(TEXT, Experiment)
    with pytest.raises(SystemExit) as end:
        parser.parse(["--help", "evaluation"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.splitlines() if line.strip().startswith("--")}
    assert "--evaluation.min_score" in listed and "--evaluation.nms.sigma" in listed
    assert {name.split(".")[0] for name in listed} == {"--evaluation"}
    with pytest.raises(ValueError, match=r"no group of settings heat; there are data, .*evaluat"):
        parser.parse(["--help", "heat"])


def test_help_lists_only_what_a_script_uses() -> None:
    text = ScriptParser(TEXT, Experiment, ["evaluation", "training.precision"]).format_help()
    assert "--evaluation.nms.sigma" in text and "--training.precision" in text
    assert "--training.lr" not in text and "--data." not in text


def test_an_option_of_the_script_hides_a_setting_of_its_name() -> None:
    parser = ScriptParser(TEXT, Experiment)
    parser.add_argument("--out")
    assert parser.format_help().count("  --out ") == 1
    args, overrides = parser.parse(["--out", "x", "--direction", "reversed"])
    assert args == argparse.Namespace(out="x") and overrides == ["--direction=reversed"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--lr", "1"], "unknown setting 'lr'; did you mean 'training.lr'?"),
        (["--lr=1"], "unknown setting 'lr'; did you mean 'training.lr'?"),
        (["--batch_size", "1"], "did you mean 'evaluation.batch_size'?"),
        (["--mode", "x"], "did you mean 'backbone.mode'?"),
        (["--width", "1"], "did you mean 'backbone.trunk.width' or 'backbone.tada.width' or"),
        (["--optimizer.lr", "1"], "unknown setting 'optimizer.lr'; did you mean 'training.lr'?"),
        (["--resum"], "unknown option --resum; did you mean --resume?"),
        (["--confg", "own.yaml"], "unknown option --confg; did you mean --config?"),
        (["--xyzzy", "1"], "unknown setting 'xyzzy'; a run's config.yaml has all settings"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(given: list[str], told: str) -> None:
    parser = ScriptParser(TEXT, Experiment)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--config", required=given[0] == "--confg")
    with pytest.raises(ValueError) as error:
        parser.parse(given)
    assert told in str(error.value)


def test_a_script_without_settings_names_its_nearest_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = ScriptParser(TEXT)
    parser.add_argument("--processes")
    with pytest.raises(ValueError, match="unknown option --process; did you mean --processes"):
        parser.parse(["--process", "2"])
    with pytest.raises(SystemExit) as end:
        parser.parse(["--xyzzy"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: command line: unrecognized arguments: --xyzzy; --help lists what there is\n"
    )


def test_values_of_settings_are_no_other_arguments() -> None:
    parser = ScriptParser(TEXT, Experiment)
    parser.add_argument("videos", nargs="*")
    args, overrides = parser.parse(
        ["a.mp4", "--evaluation.batch_size", "2", "b.mp4", "--training.seed=-1"]
    )
    assert args.videos == ["a.mp4", "b.mp4"]
    assert overrides == ["--evaluation.batch_size=2", "--training.seed=-1"]
    args, overrides = parser.parse(["--training.seed", "-1", "c.mp4"])
    assert args.videos == ["c.mp4"] and overrides == ["--training.seed=-1"]


def test_a_threshold_is_a_score(environment: dict[str, str]) -> None:
    for script in ("evaluate/run.py", "evaluate/detect.py"):
        done = run(script, [*NEEDED[script], "--threshold", "30"], environment)
        assert done.returncode == 2 and "--threshold is a score from 0 to 1" in done.stderr
