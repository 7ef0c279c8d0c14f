"""Names that hardly differ: labels that may be one class, files that may be the video."""

import unicodedata
from pathlib import Path

import pytest

from evaluate.annotations import read_annotations
from evaluate.datasets.fields import NearFiles, group_spelled_alike
from tests import published


def test_labels_that_differ_in_form_alone_are_told() -> None:
    accent = unicodedata.normalize("NFD", "Café")
    running = "दौड़ना"  # ends with a mark
    names = [
        "Run",
        "run ",
        "Long Jump",
        "long_jump",
        "LongJump",
        accent,
        "Café",
        "-1",
        "1",
        "C",
        "C+",
        "cut (fast)",
        "cut  (fast)",
        "cut(fast)",
        f"{running} तेज",
        f"{running}_तेज",
        f"{running}  तेज",
        "ＲＵＮ\u3000ＵＰ",
        "run\u200b up",
        "❤",
        "❤\ufe0f",
    ]
    assert group_spelled_alike(names) == [
        ("Run", "run "),
        ("Long Jump", "long_jump", "LongJump"),
        (accent, "Café"),
        ("cut (fast)", "cut  (fast)", "cut(fast)"),
        (f"{running} तेज", f"{running}_तेज", f"{running}  तेज"),
        ("ＲＵＮ\u3000ＵＰ", "run\u200b up"),
        ("❤", "❤\ufe0f"),
    ]


def test_reading_counts_them(tmp_path: Path) -> None:
    videos: published.Videos = {"a": ("training", [("Run", 1, 2), ("run", 3, 4), ("jump", 5, 6)])}
    published.activitynet(tmp_path / "gt.json", videos)
    annotations = read_annotations(tmp_path / "gt.json")
    (what,) = annotations.warnings
    assert "'Run', 'run'" in what and annotations.warnings[what] == 2
    assert annotations.classes == ("Run", "jump", "run")  # told, not changed


def test_labels_that_look_the_same_are_told_apart(tmp_path: Path) -> None:
    accent = unicodedata.normalize("NFD", "Café")
    videos: published.Videos = {"a": ("training", [("Café", 1, 2), (accent, 3, 4)])}
    published.activitynet(tmp_path / "gt.json", videos)
    (what,) = read_annotations(tmp_path / "gt.json").warnings
    assert r"'Caf\xe9'" in what and r"'Cafe\u0301'" in what


@pytest.mark.parametrize(
    ("name", "files", "hint"),
    [
        ("My Video", ["my_video", "other"], "but there is 'my_video'"),
        ("clip.mp4", ["clip"], "; leave out the extension in"),
        ("videos/clip", ["clip"], "; leave out the folder in"),
        ("D:\\my videos\\clip.MP4", ["clip"], "; leave out the folder and the extension in"),
        ("v1.2", ["v1.2 "], "but there is 'v1.2 ': give"),
        ("कि", ["का"], ""),  # two words, whose vowels are marks
        (
            unicodedata.normalize("NFD", "über"),
            ["über"],
            "but there is 'über', which looks the same",
        ),
        ("take_2", ["take (2)"], "but there is 'take (2)': give"),  # as Label Studio calls uploads
        ("Morgen__Abend", ["Morgen & Abend", "Abend"], "but there is 'Morgen & Abend': give"),
        ("- (&)", ["(&)"], ""),
        ("Clip.MP4", ["clip", "CLIP"], "but there is 'clip' and 'CLIP'"),
        ("clip 1", ["clip 2"], ""),
    ],
)
def test_files_that_nearly_match_are_named(name: str, files: list[str], hint: str) -> None:
    found = NearFiles(files).describe(name)
    assert hint in found if hint else not found
