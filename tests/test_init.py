"""A first config for own data: written after a look at it, then checked and trained from."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from configs.loader import load
from evaluate.annotations import Annotations, Segment, Video, read_annotations
from extract.demo import DemoConfig, write_dataset
from extract.init import write_config
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.dataset_check.first_config import choose_subsets, write_labels

Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = [  # of the demo's network
    *("--pixels.size=64", "--pixels.train_short_side=72", "--backbone.trunk.width=96"),
    *("--backbone.trunk.depth=6", "--backbone.trunk.heads=3", "--backbone.trunk.image_size=64"),
    f"--backbone.weights={REPOSITORY}/configs/e2e/demo/videomae_tiny.safetensors",
    *("--head.width=32", "--head.stem_blocks=1", "--training.updates=null"),
    *("--training.epochs=1", "--training.warmup_epochs=0", "--training.workers=0"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos with their labels, and the same labels as a table without subsets."""
    folder = tmp_path_factory.mktemp("own")
    write_dataset(folder, DemoConfig(4, 0, 2, shortest=6.0, longest=9.0))
    content = json.loads((folder / "annotations.json").read_text())["database"]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "start", "end", "label"])
        for name, video in content.items():
            for action in video["annotations"]:
                table.writerow([name, *action["segment"], action["label"]])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A call of a script in an empty folder."""

    def run(
        script: str, *arguments: object, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.slow
def test_what_is_written_is_checked_and_trained_from(data: Path, tmp_path: Path, run: Run) -> None:
    near = Path(os.path.relpath(data, tmp_path))
    done = run("extract/init.py", near / "videos", near / "annotations.json")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "own.yaml").read_text()
    assert len(text.splitlines()) < 40
    config = load(Experiment, tmp_path / "own.yaml")
    assert (config.data.train_subset, config.data.test_subset) == ("training", "test")
    assert config.data.validation_subset is None and config.out == "runs/own"
    commands = [line.strip() for line in done.stdout.partition("next:")[2].splitlines() if line]
    scripts = ("extract/check.py", "train/e2e.py", "evaluate/run.py")
    assert [line.split()[1] for line in commands] == [f"{REPOSITORY}/{each}" for each in scripts]
    for reason in ("6 videos, ", "trained on training, tested on test", "windows: at "):
        assert reason in done.stdout and reason in text
    # Each of the three does what it says; the network is a small one.
    tiny = [*TINY, "--training.precision=fp32"]
    checked = run(*commands[0].split()[1:], *tiny)
    assert checked.returncode in (0, 2), checked.stdout + checked.stderr
    now = f"sampling.window_size {config.sampling.window_size} and sampling.fps"
    assert f"suggested: {now} {config.sampling.fps:g} (as they are):" in checked.stdout
    trained = run(*commands[1].split()[1:], *tiny)
    assert trained.returncode == 0, trained.stderr
    scored = run(*commands[2].split()[1:])
    assert scored.returncode == 0 and "average mAP" in scored.stdout, scored.stderr
    assert "was trained" not in scored.stdout
    # Also from another folder, from which the relative paths lead nowhere.
    (tmp_path / "deep/er").mkdir(parents=True)
    options = ["--checkpoint", tmp_path / "runs/own/last.pt", "--out", "again"]
    again = run("evaluate/run.py", *options, cwd=tmp_path / "deep/er")
    assert again.returncode == 0, again.stderr
    told = f"from {tmp_path}, where {tmp_path}/runs/own/last.pt was trained: "
    assert f"{told}data.annotations, data.videos\n" in again.stdout
    (result,) = re.findall(r"average mAP [\d.]+;", scored.stdout)
    assert result in again.stdout


def test_commands_are_quoted_for_a_shell(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["my code/extract/init.py"])
    out = tmp_path / "my own.yaml"
    write_config(data / "videos", data / "annotations.json", None, out)
    commands = capsys.readouterr().out.partition("next:")[2].splitlines()
    assert [shlex.split(line) for line in commands if line] == [
        ["python", "my code/extract/check.py", "--config", str(out)],
        ["python", "my code/train/e2e.py", "--config", str(out)],
        ["python", "my code/evaluate/run.py", "--checkpoint", "runs/my own/last.pt"],
    ]


def test_nothing_is_overwritten(data: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "own.yaml").write_text("mine\n")
    done = run("extract/init.py", data / "videos", data / "annotations.json")
    assert done.returncode == 1 and (tmp_path / "own.yaml").read_text() == "mine\n"
    assert done.stderr.startswith("error: --out: own.yaml is there already")
    (tmp_path / "x-labels.csv").write_text("mine\n")
    with pytest.raises(ValueError, match=r"x-labels.csv is there already"):
        write_config(data / "videos", data / "annotations.json", None, tmp_path / "x.yaml")


def test_mistakes_name_the_argument(data: Path, tmp_path: Path) -> None:
    videos, labels = data / "videos", data / "annotations.json"
    with pytest.raises(ValueError, match="VIDEOS: there is no folder"):
        write_config(tmp_path / "absent", labels, None, tmp_path / "x.yaml")
    with pytest.raises(ValueError, match=r"LABELS: there is no .*absent"):
        write_config(videos, tmp_path / "absent", None, tmp_path / "x.yaml")
    with pytest.raises(ValueError, match=r"--classes: there is no .*absent"):
        write_config(videos, labels, tmp_path / "absent", tmp_path / "x.yaml")
    with pytest.raises(ValueError, match=r"--out: .*x.txt must end in .yaml"):
        write_config(videos, labels, None, tmp_path / "x.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file of the 6 videos in .*, such as training_000"):
        write_config(tmp_path / "empty", labels, None, tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_labels_of_one_subset_are_split(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "annotations.json").read_text())
    for video in content["database"].values():
        video["subset"] = "all"
    (tmp_path / "all.json").write_text(json.dumps(content))
    out = tmp_path / "mine.yaml"
    write_config(data / "videos", tmp_path / "all.json", None, out)
    settings = yaml.safe_load(out.read_text())["data"]
    assert settings["annotations"] == str(tmp_path / "mine-labels.csv")
    given = read_annotations(tmp_path / "all.json")
    split = read_annotations(tmp_path / "mine-labels.csv")
    assert sorted(video.subset for video in split.videos.values()) == ["test"] + 5 * ["training"]
    for name, video in given.videos.items():
        for one, other in zip(video.segments, split.videos[name].segments, strict=True):
            assert one.label == other.label and one[1:] == pytest.approx(other[1:], abs=1e-3)


def test_a_table_without_subsets_gets_them(data: Path, tmp_path: Path) -> None:
    write_config(data / "videos", data / "labels.csv", None, tmp_path / "own.yaml")
    config = load(Experiment, tmp_path / "own.yaml")
    found = read_annotations(Path(config.data.annotations))
    subsets = [video.subset for video in found.videos.values()]
    assert config.data.train_subset in subsets and config.data.test_subset in subsets
    assert config.pixels.flip == 0  # the classes have left and right in their names


def labelled(**subsets: str) -> Annotations:
    segments = (Segment("a", 1.0, 2.5),)
    videos = {n: Video(n, s, None, None, None, segments) for n, s in subsets.items()}
    return Annotations(videos, ("a",), {})


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (["training", "validation", "test"], ("training", "validation", "test")),
        (["train", "val"], ("train", "val", "val")),
        (["Training", "testing"], ("Training", None, "testing")),
        (["validation", "test"], ("validation", None, "test")),
        (["fold1", "fold2"], ("training", None, "test")),
        (["training", "training"], ("training", None, "test")),
        (["test", "test"], ("training", None, "test")),
    ],
)
def test_subsets_are_recognised_by_their_names(
    subsets: list[str], expected: tuple[str, str | None, str]
) -> None:
    annotations = labelled(**{f"v{place}": subset for place, subset in enumerate(subsets)})
    found = choose_subsets(annotations, list(annotations.videos))
    assert (found.train, found.validation, found.test) == expected
    new = subsets[0] in ("fold1", "test") or subsets[0] == subsets[1]
    assert (found.assigned is not None) == new
    if found.assigned:
        assert sorted(found.assigned.values()) == ["test", "training"]
        assert write_labels(annotations, found.assigned).count("1,2.5,a") == 2


def test_a_subset_without_files_is_none() -> None:
    annotations = labelled(a="training", b="test", c="training")
    assert choose_subsets(annotations, ["a", "c"]).assigned is not None
    with pytest.raises(ValueError, match="one video only, a; one more"):
        choose_subsets(annotations, ["a"])
