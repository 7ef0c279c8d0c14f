"""A checkpoint's data are found from any folder, by the folder that it was trained in."""

from pathlib import Path

import pytest

from configs.loader import parse
from train.config import Experiment
from train.engine.checkpoint import Checkpoint, find_data, load_checkpoint, save_checkpoint
from train.recognition.config import Recognition

SETTINGS = """
out: runs/x
data: {annotations: data/a.json, videos: data/videos, classes: data/c.txt, info_csv: [data/i.csv]}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, where training ran; tests run in another one."""
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home / "data/videos", away):
        folder.mkdir(parents=True)
    for name in ("a.json", "c.txt", "i.csv"):
        (home / "data" / name).write_text("")
    monkeypatch.chdir(away)
    return home


def saved_in(folder: Path | None, settings: str = SETTINGS) -> Checkpoint[Experiment]:
    config = parse(Experiment, settings)
    return Checkpoint(config, ("a",), {}, {}, {}, folder=None if folder is None else str(folder))


def test_relative_paths_that_lead_nowhere_are_from_there(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(home)
    found = find_data(saved.config, saved, "x.pt", needs_videos=True)
    assert found.data.annotations == str(home / "data/a.json")
    assert found.data.videos == str(home / "data/videos")
    assert found.data.classes == str(home / "data/c.txt")
    assert found.data.info_csv == (str(home / "data/i.csv"),)
    assert found.out == "runs/x"
    assert capsys.readouterr().out == (
        f"from {home}, where x.pt was trained: data.annotations, data.classes, data.info_csv, "
        "data.videos\n"
    )


def test_what_is_here_is_used(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = saved_in(home)
    Path("data").mkdir()
    Path("data/a.json").write_text("")
    found = find_data(saved.config, saved, "x.pt", needs_videos=True)
    assert found.data.annotations == "data/a.json"
    assert "data.annotations" not in capsys.readouterr().out
    # In the training's own folder nothing changes, and nothing is said.
    own = saved_in(Path.cwd().parent / "home")
    assert find_data(own.config, own._replace(folder=None), "x.pt", True) == own.config
    assert not capsys.readouterr().out


def test_what_is_given_anew_is_not_looked_for_there(home: Path) -> None:
    (home / "data/b.json").write_text("")
    saved = saved_in(home)
    given = parse(Experiment, SETTINGS.replace("a.json", "b.json"))
    assert find_data(given, saved, "x.pt", True).data.annotations == "data/b.json"


def test_what_is_nowhere_is_told_with_both_places(home: Path) -> None:
    (home / "data/a.json").unlink()
    saved = saved_in(home)
    with pytest.raises(ValueError) as error:
        find_data(saved.config, saved, "x.pt", needs_videos=False)
    assert str(error.value) == (
        f"data.annotations: there is no data/a.json in {Path.cwd()} or in {home}, where x.pt was "
        "trained; give --data.annotations"
    )


def test_videos_are_needed_only_without_a_cache(home: Path) -> None:
    (home / "data/videos").rmdir()
    saved = saved_in(home)
    assert find_data(saved.config, saved, "x.pt", False).data.videos == "data/videos"
    with pytest.raises(ValueError, match=r"data\.videos: there is no data/videos in .*home"):
        find_data(saved.config, saved, "x.pt", True)


def test_a_store_beside_the_data_is_found(home: Path) -> None:
    (home / "store").mkdir()
    saved = saved_in(home, SETTINGS + "cache: {url: store}\n")
    assert find_data(saved.config, saved, "x.pt", True).cache.url == str(home / "store")
    saved = saved_in(home, SETTINGS + "cache: {url: s3://store}\n")
    assert find_data(saved.config, saved, "x.pt", True).cache.url == "s3://store"


def test_a_recognisers_data_are_found(home: Path) -> None:
    text = "out: x\ndata: {annotations: data/a.json, classes: [data/c.txt]}\n"
    config = parse(Recognition, text)
    saved = Checkpoint(config, ("a",), {}, {}, {}, folder=str(home))
    found = find_data(config, saved, "x.pt", needs_videos=True)
    assert found.data.annotations == str(home / "data/a.json") and found.data.videos is None
    assert found.data.classes == (str(home / "data/c.txt"),)


def test_a_checkpoint_remembers_its_folder(home: Path) -> None:
    saved = saved_in(None)
    save_checkpoint(Path("x.pt"), saved)
    assert load_checkpoint("x.pt", Experiment).folder == str(Path.cwd())
