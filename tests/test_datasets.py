"""Published annotation formats: read as they are published, refused by line, never a crash."""

import csv
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.loader import load
from evaluate.annotations import Annotations, Segment, read_annotations, select_videos
from evaluate.datasets.classes import read_classes
from evaluate.datasets.fields import Refused
from evaluate.datasets.read import annotation_files
from tests import published, tool_exports
from tests.conftest import REPOSITORY
from tests.published import Videos
from train.config import Experiment
from train.data.truth import load_annotations

VERBS, NOUNS = ("take", "put", "wash"), ("tap", "spoon", "plate")
THUMOS: Videos = {
    "video_validation_0000266": ("validation", [("BaseballPitch", 72.8, 76.4)]),
    "video_validation_0000681": ("validation", [("BaseballPitch", 44.0, 50.9), ("Diving", 1, 2)]),
    "video_test_0000324": ("test", [("Diving", 49.2, 53.5), ("Diving", 116.7, 122.5)]),
}
KITCHEN: Videos = {
    "P01_11": ("training", [("take plate", 0.0, 1.89), ("put plate", 1.56, 62.45)]),
    "P01_16": ("validation", [("wash spoon", 71.25, 99.99)]),
    "P01_101": ("test", [("take tap", 2.86, 3.87)]),
}
HOMES: Videos = {
    "46GP8": ("training", [("Opening a door", 11.9, 21.2), ("Holding a bag", 0.0, 12.6)]),
    "N11GT": ("training", []),
    "0IH69": ("test", [("Holding a bag", 3.5, 9.25)]),
}
CLIPS: Videos = {
    "clip-a": ("training", [("wash_hands", 1.5, 4.25), ('"cut_,_chop"', 30.0, 470.125)]),
    "clip-b": ("validation", [("wash_hands", 0.0, 480.0)]),
    "clip-c": ("test", []),
}


def expected(videos: Videos) -> dict[str, tuple[str, list[Segment]]]:
    return {name: (subset, [Segment(*x) for x in each]) for name, (subset, each) in videos.items()}


def found(annotations: Annotations) -> dict[str, tuple[str, list[Segment]]]:
    return {v.name: (v.subset, list(v.segments)) for v in annotations.videos.values()}


# ------------------------------------------------------------------ each as it is published


@pytest.mark.parametrize("write", [published.thumos_text, published.multithumos, published.afsd])
def test_thumos_files(tmp_path: Path, write: Callable[[Path, Videos], None]) -> None:
    write(tmp_path / "data", THUMOS)
    annotations = read_annotations(tmp_path / "data")
    assert found(annotations) == expected(THUMOS)
    assert annotations.classes == ("BaseballPitch", "Diving")
    assert annotations.warnings == {}
    assert {video.duration_s for video in annotations.videos.values()} == {None}


def test_ambiguous_segments_of_thumos_are_dropped_and_their_videos_stay(tmp_path: Path) -> None:
    videos = {**THUMOS, "video_test_0001292": ("test", [("Ambiguous", 1.0, 2.0)])}
    for write in (published.thumos_text, published.afsd):
        write(tmp_path / write.__name__, videos)
        annotations = read_annotations(tmp_path / write.__name__)
        assert found(annotations) == expected({**THUMOS, "video_test_0001292": ("test", [])})
        assert annotations.classes == ("BaseballPitch", "Diving")
        assert annotations.warnings == {"'Ambiguous' annotations dropped": 1}


def test_a_file_alone_tells_its_subset(tmp_path: Path) -> None:
    published.thumos_text(tmp_path, THUMOS)
    file = tmp_path / "annotations_val" / "BaseballPitch_val.txt"
    annotations = read_annotations(file)
    assert [video.subset for video in annotations.videos.values()] == ["validation"] * 2
    assert annotations.classes == ("BaseballPitch",)


def test_folders_tell_the_subset_where_files_do_not(tmp_path: Path) -> None:
    parts = {"train": "training", "Testing_set": "test", "val/1": "validation"}
    for part in parts:
        file = tmp_path / part / "Run.txt"
        file.parent.mkdir(parents=True)
        file.write_text(f"{part[:2]} 1 2\n")
    annotations = read_annotations(tmp_path)
    assert {video.name: video.subset for video in annotations.videos.values()} == {
        part[:2]: subset for part, subset in parts.items()
    }
    assert annotations.classes == ("Run",)


def test_names_of_classes_may_look_like_subsets(tmp_path: Path) -> None:
    (tmp_path / "Test_drive_val.txt").write_text("a 1 2\n")
    (tmp_path / "High_jump_test.txt").write_text("b 1 2\n")
    (tmp_path / "Low_jump.txt").write_text("video_test_01 1 2\n")
    annotations = read_annotations(tmp_path)
    assert annotations.classes == ("High_jump", "Low_jump", "Test_drive")
    subsets = {video.name: video.subset for video in annotations.videos.values()}
    assert subsets == {"a": "validation", "b": "test", "video_test_01": "test"}


@pytest.mark.parametrize("kind", ["verb", "noun"])
def test_epic_kitchens(tmp_path: Path, kind: str) -> None:
    published.epic(tmp_path, KITCHEN, VERBS, NOUNS)
    annotations = read_annotations(tmp_path, classes=tmp_path / f"EPIC_100_{kind}_classes.csv")
    assert annotations.warnings == {}
    word = 0 if kind == "verb" else 1
    wanted = {
        name: (subset, [(x.split()[word], s, e) for x, s, e in each] if subset != "test" else [])
        for name, (subset, each) in KITCHEN.items()
    }
    assert found(annotations) == expected(wanted)
    assert annotations.classes == (VERBS if kind == "verb" else NOUNS)
    for video in annotations.videos.values():
        assert (video.duration_s, video.fps, video.frames) == (100.5, 59.94, None)


def test_epic_kitchens_asks_what_is_to_be_found(tmp_path: Path) -> None:
    published.epic(tmp_path, KITCHEN, VERBS, NOUNS)
    names = tmp_path / "names.txt"
    names.write_text("take\nput\nwash\n")
    for classes in (None, names):
        with pytest.raises(ValueError, match=r"EPIC_100_train.csv .*data\.classes.*verb_classes"):
            read_annotations(tmp_path, classes=classes)


def test_charades(tmp_path: Path) -> None:
    classes = ("Holding some clothes", "Holding a bag", "Opening a door")
    published.charades(tmp_path, HOMES, classes)
    annotations = read_annotations(tmp_path, classes=tmp_path / "Charades_v1_classes.txt")
    assert found(annotations) == expected(HOMES)
    assert annotations.classes == classes
    assert {video.duration_s for video in annotations.videos.values()} == {100.0}
    without = read_annotations(tmp_path)
    assert without.classes == ("c001", "c002")
    assert without.videos["46GP8"].segments[0] == Segment("c002", 11.9, 21.2)


def test_actions_of_charades_that_end_before_they_start_are_dropped(tmp_path: Path) -> None:
    videos: Videos = {"AKKWU": ("training", [("run", 38.0, 13.0), ("run", 1.0, 2.0)])}
    published.charades(tmp_path, videos, ("run",))
    annotations = read_annotations(tmp_path, classes=tmp_path / "Charades_v1_classes.txt")
    assert annotations.videos["AKKWU"].segments == (Segment("run", 1.0, 2.0),)
    assert annotations.warnings == {"actions that end before they start dropped": 1}


def test_clips_of_ego4d_are_videos(tmp_path: Path) -> None:
    published.ego4d(tmp_path, CLIPS)
    annotations = read_annotations(tmp_path)
    short = {name: (published.SUFFIX[subset], each) for name, (subset, each) in CLIPS.items()}
    assert found(annotations) == expected(short)
    assert annotations.classes == ('"cut_,_chop"', "wash_hands")
    for video in annotations.videos.values():
        assert (video.duration_s, video.frames, video.fps) == (480.0, 14400, 30.0)
    assert found(read_annotations(tmp_path / "moments_val.json")) == expected(
        {"clip-b": short["clip-b"]}
    )


def test_clips_of_ego4d_that_published_runs_leave_out(tmp_path: Path) -> None:
    videos: Videos = {name: ("training", [("wash_hands", 1.0, 2.0)]) for name in "abc"}
    published.ego4d(tmp_path, {**videos, "d": ("training", [])})
    file = tmp_path / "moments_train.json"
    content = json.loads(file.read_text())
    clips = [video["clips"][0] for video in content["videos"]]
    clips[1]["video_end_frame"] = 100 * 480 + 301
    clips[2]["annotations"][0]["labels"][0]["video_start_time"] = 9.5
    file.write_text(json.dumps(content))
    annotations = read_annotations(file)
    assert list(annotations.videos) == ["a", "c"]
    assert annotations.videos["c"].segments == (Segment("wash_hands", 0.0, 2.0),)
    assert annotations.warnings == {
        "clips with an impossible frame rate left out": 1,
        "segments clipped to the start of their clip": 1,
        "clips without a primary label left out": 1,
    }


def test_json_in_activitynets_layout(tmp_path: Path) -> None:
    published.activitynet(tmp_path / "gt.json", THUMOS)
    annotations = read_annotations(tmp_path / "gt.json")
    assert found(annotations) == expected(THUMOS)
    (tmp_path / "category_idx.txt").write_text("Diving\nBaseballPitch\n")
    assert read_annotations(tmp_path) == annotations


def test_a_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    for name in ("gt.json", "gt", "gt.csv"):
        published.activitynet(tmp_path / name, THUMOS)
        assert found(read_annotations(tmp_path / name)) == expected(THUMOS)
    published.own(tmp_path / "own", THUMOS)
    assert found(read_annotations(tmp_path / "own")) == expected(THUMOS)


def test_configs_read_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.multithumos(tmp_path / "data/multithumos", THUMOS)
    published.epic(tmp_path / "data/epic_kitchens", KITCHEN, VERBS, NOUNS)
    published.charades(tmp_path / "data/charades", HOMES, ("Holding a bag", "Opening a door"))
    published.ego4d(tmp_path / "data/ego4d/annotations", CLIPS)
    monkeypatch.chdir(tmp_path)
    read = set()
    for folder in ("multithumos", "epic_kitchens", "charades", "ego4d_mq"):
        for file in (REPOSITORY / "configs/e2e" / folder).glob("*.yaml"):
            data = load(Experiment, file).data
            annotations = load_annotations(data)
            for subset in (data.train_subset, data.validation_subset, data.test_subset):
                assert subset and select_videos(annotations, subset)
            read.add((file.parent.name, annotations.classes))
    assert read == {
        ("multithumos", ("BaseballPitch", "Diving")),
        ("epic_kitchens", VERBS),
        ("epic_kitchens", NOUNS),
        ("charades", ("Holding a bag", "Opening a door")),
        ("ego4d_mq", ('"cut_,_chop"', "wash_hands")),
    }


# ------------------------------------------------------------------ your own table


def test_your_own_table(tmp_path: Path) -> None:
    videos = {**THUMOS, "nothing happens": ("test", [])}
    published.own(tmp_path / "actions.csv", videos)
    annotations = read_annotations(tmp_path / "actions.csv")
    assert found(annotations) == expected(videos)
    assert annotations.warnings == {}


def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "actions.csv"
    text = (
        'Video, Start ,End,Label,notes\r\na,0:12.4,1:02:00,"jump, high",fine\r\n\r\nb,3,4,run\r\n'
    )
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    annotations = read_annotations(file)
    assert annotations.videos["a"].segments == (Segment("jump, high", 12.4, 3720.0),)
    assert annotations.videos["b"].segments == (Segment("run", 3.0, 4.0),)


def test_without_subsets_one_video_in_five_is_for_testing(tmp_path: Path) -> None:
    videos: Videos = {f"film {i}": ("", [("run", 1, 2), ("run", 3, 4)]) for i in range(500)}
    published.own(tmp_path / "actions_train.csv", videos, subset_column=False)
    annotations = read_annotations(tmp_path / "actions_train.csv")
    for name, video in annotations.videos.items():
        chosen = zlib.crc32(name.encode("utf-8")) % 5 == 0
        assert video.subset == ("test" if chosen else "training")
    assert 60 < len(select_videos(annotations, "test")) < 140
    assert list(annotations.warnings.values()) == [500]
    assert "'subset'" in next(iter(annotations.warnings))


def test_tables_side_by_side_tell_their_subsets(tmp_path: Path) -> None:
    for part in ("train", "val", "testing"):
        published.own(tmp_path / f"{part}.csv", {part: ("", [("run", 1, 2)])}, subset_column=False)
    annotations = read_annotations(tmp_path)
    subsets = {video.name: video.subset for video in annotations.videos.values()}
    assert subsets == {"train": "training", "val": "validation", "testing": "test"}
    assert annotations.warnings == {}


# ------------------------------------------------------------------ the real file


def test_thumos_is_the_same_in_every_layout(shared: Path, tmp_path: Path) -> None:
    source = shared / "thumos14"
    database = json.loads((source / "thumos_gt.json").read_text())["database"]
    subsets = {"train": "validation", "test": "test"}
    # In the order of the classes, as text files with one class each have them.
    videos: Videos = {
        name: (
            subsets[record["subset"]],
            sorted(
                ((x["label"], *map(float, x["segment"])) for x in record["annotations"]),
                key=lambda segment: segment[0],
            ),
        )
        for name, record in database.items()
    }
    published.thumos_text(tmp_path / "text", videos)
    published.afsd(tmp_path / "afsd", videos)
    published.own(tmp_path / "own.csv", videos)
    published.activitynet(tmp_path / "gt.json", videos)
    tables = [source / "val_video_info.csv", source / "test_video_info.csv"]
    text, table, own, layout = (
        read_annotations(tmp_path / part, info_csv=tables)
        for part in ("text", "afsd", "own.csv", "gt.json")
    )
    assert text == table == own == layout

    labels = Counter(x["label"] for record in database.values() for x in record["annotations"])
    assert Counter(s.label for v in text.videos.values() for s in v.segments) == labels
    assert (len(text.videos), labels.total()) == (410, 6318)
    assert text.classes == tuple(sorted(labels))
    assert len(select_videos(text, "validation")) == 200
    measures: dict[str, dict[str, str]] = {}
    for path in tables:
        with path.open() as file:
            measures |= {row["video"]: row for row in csv.DictReader(file)}
    covered = sum(s.end_s - s.start_s for v in text.videos.values() for s in v.segments)
    times = [map(float, x["segment"]) for r in database.values() for x in r["annotations"]]
    assert covered == pytest.approx(sum(end - start for start, end in times))
    for name, video in text.videos.items():
        row = measures[name]
        assert video.duration_s == float(row["count"]) / float(row["fps"])


# ------------------------------------------------------------------ class lists


@pytest.mark.parametrize(
    ("text", "names", "codes"),
    [
        ("walk\nrun fast\n", ("walk", "run fast"), {}),
        ("c000 Holding some clothes\nc001 Washing\n", ("Holding some clothes", "Washing"),
         {"c000": "Holding some clothes", "c001": "Washing"}),
        ("7 BaseballPitch\n9 BasketballDunk\n", ("BaseballPitch", "BasketballDunk"),
         {"7": "BaseballPitch", "9": "BasketballDunk"}),
        ('000\t"clean_(mower,_etc.)"\n001\twash\n', ('"clean_(mower,_etc.)"', "wash"),
         {"000": '"clean_(mower,_etc.)"', "001": "wash"}),
        ('id,key,instances,category\n0,take,"[\'get\', \'grab\']",retrieve\n1,put,[],leave\n',
         ("take", "put"), {"0": "take", "1": "put"}),
        # Numbers that belong to the names:
        ("2 hands\n1 hand\n", ("2 hands", "1 hand"), {}),
        ("1 hand\n2 hand\n", ("1 hand", "2 hand"), {}),
        ("1 hand\nhands\n", ("1 hand", "hands"), {}),
    ],
)  # fmt: skip
def test_class_lists(
    tmp_path: Path, text: str, names: tuple[str, ...], codes: dict[str, str]
) -> None:
    file = tmp_path / "classes"
    file.write_text(text)
    assert read_classes(file) == (names, codes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,key\n0,take\n2,put\n", "ids must be 0, 1, 2"),
        ("id,key\n0,take\nx,put\n", "line 3: id must be a finite number"),
        ("id,key\n0,take\n1,\n", "line 3: 'key' is empty"),
        ("id,key\n0,take\n1,take\n", "'take' is listed twice"),
        ("id,key\n", "names no class"),
    ],
)
def test_a_malformed_class_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "verbs.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"verbs\.csv.*{message}"):
        read_classes(file)


# ------------------------------------------------------------------ what is refused

OWN = "video,start,end,label\n"
CHARADES = "id,actions,length\n"
AFSD = "video,type,type_idx,start,end\n"
EPIC = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own.csv", OWN + "a,1,2,run\na,x,2,run\n", "own.csv: line 3: .*finite number, not 'x'"),
        ("own.csv", OWN + "a,5,2,run\n", "own.csv: line 2: .*before its start 5.0"),
        ("own.csv", OWN + "a,-1,2,run\n", "own.csv: line 2: .*starts at -1.0"),
        ("own.csv", OWN + "a,1,2,\n", "own.csv: line 2: 'label' is empty"),
        ("own.csv", OWN + "a,1\n", "own.csv: line 2: 'end' is empty"),
        ("own.csv", OWN + ",1,2,run\n", "own.csv: line 2: 'video' is empty"),
        ("own.csv", OWN + "a,1,2,jump, high\n", "own.csv: line 2: 5 cells, but 4 columns"),
        ("own.csv", OWN + 'a,"1,2,run\nb,1,2,run\n', "own.csv: line 2: a double quote begins"),
        ("own.csv", OWN + 'a,1,2,"run\nb,1,2,run\n', "own.csv: line 2: a double quote begins"),
        ("own.csv", OWN + 'a,1,2,"run\nb,1,2,"run"\n', "own.csv: line 2: a double quote begins"),
        ("own.csv", OWN + 'a,1,2,"run\n' + "b,1,2,run\n" * 20_000, "own.csv: line 2: a double"),
        ("own.csv", "video,start,label\n", "own.csv: line 1: column end is missing"),
        ("own.csv", "video|start|end|label\n", "own.csv: line 1: .*separated by commas"),
        ("own.csv", "video,start,end,end,label\n", "own.csv: column end is there twice"),
        ("own.csv", "", "own.csv is empty"),
        ("own.csv", OWN + 'a,1,2,"two\nlines"\n\nb,x,2,run\n', "own.csv: line 5: .*not 'x'"),
        ("own.csv", OWN + "a,1,2," + "long" * 40_000, "own.csv is not a CSV table"),
        (
            "own.csv",
            "video,start,end,label,subset\na,1,2,run,test\na,3,4,run,training\n",
            "own.csv: line 3: video 'a' is in subset 'training' here, but in 'test' before",
        ),
        ("own.csv", "video,start,end,label,subset\na,1,2,run,\n", "line 2: 'subset' is empty"),
        ("val.csv", AFSD + "a,Run,1,2,x\n", "val.csv: line 2: .*finite number, not 'x'"),
        ("all.csv", AFSD + "a,Run,1,2,3\n", "all.csv: line 2: neither the file's name nor"),
        ("Charades_v1_train.csv", CHARADES + "a,c001 1,9\n", "line 2, action 0: expected `class"),
        ("Charades_v1_train.csv", CHARADES + "a,c001 1 2;c002 x 3,9\n", "line 2, action 1: .*'x'"),
        ("Charades_v1_train.csv", CHARADES + "a,,\n", "line 2: 'length' is empty"),
        ("Charades_v1_train.csv", CHARADES + "a,,0\n", "line 2, video 'a': duration must be above"),
        ("Charades_v1_train.csv", CHARADES + "a,,9\na,,9\n", "line 3, video 'a' .*twice.*line 2"),
        ("verbs_train.csv", EPIC + "a,00:00:01,x,0,1\n", "verbs_train.csv .*verb_classes"),
        ("Run_val.txt", "v 1 2\nv 1\n", "Run_val.txt: line 2: expected `video start end`"),
        ("Run_val.txt", "v 1 2\n\nv 1 x\n", "Run_val.txt: line 3: .*finite number, not 'x'"),
        ("Run_val.txt", "v 3 2\n", "Run_val.txt: line 1: .*before its start"),
        ("Run.txt", "v 1 2\n", "Run.txt: line 1: neither the file's name nor that of video 'v'"),
        ("Run_val.txt", "hello\n", "Run_val.txt: no line of it is `video start end`"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("videos", 0, "split"), 3, r"videos\[0\]: 'split' must be a text"),
        (("videos", 0, "clips"), None, r"videos\[0\]: 'clips' must be a list"),
        (("videos", 0, "clips", 0), "x", r"videos\[0\], clips\[0\]: expected an object"),
        (("videos", 0, "clips", 0, "clip_uid"), 1, r"clips\[0\]: 'clip_uid' must be a text"),
        (("videos", 0, "clips", 0, "video_end_sec"), "x", r"clip 'a': video_end_sec must be a fin"),
        (("videos", 0, "clips", 0, "video_end_sec"), 9, r"clip 'a': it ends at 9.0 s"),
        (("videos", 0, "clips", 0, "annotations"), {}, r"clip 'a': 'annotations' must be a list"),
        (
            ("videos", 0, "clips", 0, "annotations", 0, "labels", 0, "primary"),
            "yes",
            r"clip 'a', annotations\[0\], labels\[0\]: 'primary' must be true or false",
        ),
        (
            ("videos", 0, "clips", 0, "annotations", 0, "labels", 0, "video_end_time"),
            11,
            r"clip 'a', annotations\[0\], labels\[0\]: .*before its start",
        ),
    ],
)
def test_malformed_clips_are_named(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    published.ego4d(tmp_path, {"a": ("training", [("wash_hands", 2.0, 3.0)])})
    file = tmp_path / "moments_train.json"
    content = node = json.loads(file.read_text())
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"moments_train\.json: .*{message}"):
        read_annotations(file)


def test_malformed_folders_are_named(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_annotations(tmp_path)

    refused("has no annotations")
    published.multithumos(tmp_path, THUMOS)
    (tmp_path / "annotations" / "Run.txt").write_text("video_test_1,1.0,2.0\n")
    refused(r"Run\.txt: no line of it is `video start end`")
    (tmp_path / "actions.csv").write_text(OWN + "a,1,2,run\n")
    (tmp_path / "more.csv").write_text("vidoe,start,end,label\na,1,2,run\n")
    refused(r"more\.csv: line 1: column video is missing")
    (tmp_path / "more.csv").unlink()
    published.activitynet(tmp_path / "gt.json", THUMOS)
    refused(r"several formats, as actions\.csv and gt\.json")
    (tmp_path / "actions.csv").unlink()
    published.activitynet(tmp_path / "gt2.json", THUMOS)
    refused(r"gt2\.json: video 'video_validation_0000266' is listed twice, first in .*gt\.json")


def test_a_blocked_video_may_be_malformed(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(OWN + "a,1,2,run\nb,5,x,walk\n")
    annotations = read_annotations(file, blocked=["b"])
    assert list(annotations.videos) == ["a"]
    assert annotations.classes == ("run", "walk")


def test_files_of_a_folder_are_known(tmp_path: Path) -> None:
    published.multithumos(tmp_path, THUMOS)
    (tmp_path / "video.mp4").touch()
    names = [file.relative_to(tmp_path).as_posix() for file in annotation_files(tmp_path)]
    wanted = ["annotations/BaseballPitch.txt", "annotations/Diving.txt", "class_list.txt"]
    assert names == wanted
    assert annotation_files(tmp_path / "gt.json") == [tmp_path / "gt.json"]


# ------------------------------------------------------------------ whatever it is, no crash

Files = dict[Path, Path | None]
TOOLS: tuple[Callable[[Path, Videos], None], ...] = (
    *(tool_exports.cvat, tool_exports.label_studio, tool_exports.label_studio_minimal),
    *(tool_exports.via, tool_exports.via_table, tool_exports.elan),
    *(tool_exports.boris_tabular, tool_exports.boris_aggregated),
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def read_or_refuse(path: Path, classes: Path | None = None) -> None:
    try:
        assert isinstance(read_annotations(path, classes=classes), Annotations)
    except ValueError as error:
        # Of ours, with a message, not one of json or codecs.
        assert type(error) in (ValueError, Refused)
        assert path.name in str(error)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file of every layout, with the list of classes that it needs."""
    folder = tmp_path_factory.mktemp("published")
    published.epic(folder / "epic", KITCHEN, VERBS, NOUNS)
    published.charades(folder / "charades", HOMES, ("Holding a bag", "Opening a door"))
    published.ego4d(folder / "ego4d", CLIPS)
    published.afsd(folder / "afsd", THUMOS)
    published.thumos_text(folder / "text", THUMOS)
    published.own(folder / "own.csv", THUMOS)
    published.activitynet(folder / "gt.json", THUMOS)
    one = {"video": ("training", [("run", 1.0, 2.0), ("jump", 3.0, 4.0)])}
    for write in TOOLS:
        (folder / write.__name__).mkdir()
        write(folder / write.__name__, one)
    return {
        folder / "epic/EPIC_100_train.csv": folder / "epic/EPIC_100_verb_classes.csv",
        folder / "charades/Charades_v1_train.csv": folder / "charades/Charades_v1_classes.txt",
        folder / "ego4d/moments_train.json": None,
        folder / "afsd/val_Annotation.csv": None,
        folder / "text/annotations_val/BaseballPitch_val.txt": None,
        folder / "own.csv": None,
        folder / "gt.json": None,
        **{
            file: None
            for write in TOOLS
            for file in sorted((folder / write.__name__).rglob("*.*"))
            if file.name != "info.csv"
        },
    }


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@FUZZ
@given(
    content=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8")),
    name=st.sampled_from(["a.json", "a_val.txt", "a.csv", "a_train"]),
)
def test_arbitrary_bytes(scratch: Path, content: bytes, name: str) -> None:
    file = scratch / name
    file.write_bytes(content)
    read_or_refuse(file)


@FUZZ
@given(data=st.data())
def test_mutated_files(files: Files, scratch: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 30)))
        content[start:end] = data.draw(
            st.sampled_from([b"", b",", b'"', b"\n", b"\0", b"\xff", b"nan", b"-1", b"1e999", b";"])
            | st.binary(max_size=8)
        )
    (scratch / file.name).write_bytes(content)
    read_or_refuse(scratch / file.name, files[file])


@FUZZ
@given(data=st.data())
def test_mutated_cells(files: Files, scratch: Path, data: st.DataObject) -> None:
    tables = [file for file in sorted(files) if file.suffix == ".csv"]
    file = data.draw(st.sampled_from(tables))
    with file.open(newline="") as stream:
        rows = list(csv.reader(stream))
    value = st.text(max_size=10) | st.floats().map(str) | st.sampled_from(["", "1:2:3", "c1 2 3"])
    for _ in range(data.draw(st.integers(1, 5))):
        row = data.draw(st.sampled_from(rows))
        if row:
            row[data.draw(st.integers(0, len(row) - 1))] = data.draw(value)
    published.write_rows(scratch / file.name, rows)
    read_or_refuse(scratch / file.name, files[file])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@FUZZ
@given(data=st.data())
def test_mutated_members(files: Files, scratch: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([file for file in sorted(files) if file.suffix == ".json"]))
    content = json.loads(file.read_text())
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
        for key in keys:
            places.append((node, key))
            collect(node[key])

    collect(content)
    for _ in range(data.draw(st.integers(1, 3))):
        node, key = data.draw(st.sampled_from(places))
        if isinstance(node, dict) and data.draw(st.booleans()):
            node.pop(key, None)
        else:
            node[key] = data.draw(JSON)
    (scratch / file.name).write_text(json.dumps(content))
    read_or_refuse(scratch / file.name)
