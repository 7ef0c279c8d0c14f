"""Annotation tools: what they export in all its shapes, and what is written for them."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.annotations import Annotations, Detection, read_annotations
from evaluate.detect import read_truth
from evaluate.files.annotation_tools import MediaFile, ToolFiles
from evaluate.files.predictions import write_predictions
from tests import tool_exports
from tests.encodings import write_numbered
from tests.forks import script
from tests.published import Segments, write_rows
from tests.tool_exports import BORIS_EVENTS, BORIS_HEAD, BORIS_SPANS, boris_event, boris_front
from train.config import DataConfig
from train.data.truth import load_annotations

TWO: Segments = [("run", 1.0, 2.5), ("high jump", 2.0, 3.25)]
CHANCE = "videos put into 'training' or 'test' by their names"


def segments_of(annotations: Annotations, name: str = "video") -> Segments:
    return [(s.label, s.start_s, s.end_s) for s in annotations.videos[name].segments]


def noted(annotations: Annotations) -> dict[str, int]:
    """What is tolerated, but for the subsets, which no file here tells."""
    return {k: v for k, v in annotations.warnings.items() if not k.startswith(CHANCE)}


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        read_annotations(path)
    assert path.name in str(told.value)


def save(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def edited(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ["export", "export.csv", "export.json", "export.txt"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps([tool_exports.label_studio_task(1, "video", TWO)]),
        json.dumps(tool_exports.via_project({"video": TWO})),
        tool_exports.elan_file("video", TWO),
    ],
)
def test_told_by_content(tmp_path: Path, name: str, content: str) -> None:
    path = save(tmp_path / name, content)
    if path.suffix == ".json" and content.startswith("<"):
        refused(path, "is not valid JSON")
        return
    annotations = read_annotations(path)
    assert segments_of(annotations) == TWO and not noted(annotations)


def test_without_subsets_names_choose(tmp_path: Path) -> None:
    """As for one's own table without the column."""
    part = {f"film {i}": TWO for i in range(60)}
    annotations = read_annotations(save(tmp_path / "train.json", tool_exports.via_project(part)))
    subsets = [video.subset for video in annotations.videos.values()]
    assert 5 < subsets.count("test") < 25 and set(subsets) == {"test", "training"}
    assert sum(annotations.warnings.values()) == 60
    rows: list[list[Any]] = [[name, 1, 2, "run"] for name in part]
    write_rows(tmp_path / "own.csv", [["video", "start", "end", "label"], *rows])
    own = read_annotations(tmp_path / "own.csv")
    assert subsets == [video.subset for video in own.videos.values()]


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>\n'
    "<annotations>&b;</annotations>"
)
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotations>&a;</annotations>'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, '<!DOCTYPE a SYSTEM "x.dtd"><annotations/>'])
@pytest.mark.parametrize("name", ["x.xml", "x.eaf", "x"])
def test_document_types_are_refused(tmp_path: Path, name: str, text: str) -> None:
    refused(save(tmp_path / name, text), "it declares a document type")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations>", "not usable XML"),
        ("", "not usable XML"),
        ("<html></html>", "<html> is neither CVAT's XML nor ELAN's"),
        ("<annotations/>", "'meta' describes no task"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "not usable XML"),
    ],
)
def test_other_xml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    refused(save(tmp_path / "x.xml", text), message)


# ------------------------------------------------------------------ CVAT


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder with one video of 100 frames at 25 fps."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_numbered(folder / "video.mp4", 100)
    return folder


def loaded(annotations: Path, videos: Path, **more: Any) -> Annotations:
    return load_annotations(DataConfig(annotations=str(annotations), videos=str(videos), **more))


def test_frames_are_those_of_the_video(tmp_path: Path, clip: Path) -> None:
    frames = [(label, start / 4, end / 4) for label, start, end in TWO]  # at 100 a second
    path = save(tmp_path / "x.xml", tool_exports.cvat_task("video", frames))
    found = segments_of(loaded(path, clip))
    assert [s[0] for s in found] == ["run", "high jump"]
    for (_, start, end), (_, first, last) in zip(found, frames, strict=True):
        assert (start, end) == pytest.approx((round(first * 100) / 25, round(last * 100) / 25))


def test_truth_for_a_page_may_be_in_frames(tmp_path: Path, clip: Path) -> None:
    path = save(tmp_path / "x.xml", tool_exports.cvat_task("video", [("run", 0.1, 0.5)]))
    truth = read_truth(path, [clip / "video.mp4"])
    assert segments_of(truth) == [("run", 0.4, 2.0)]
    assert not read_truth(path, []).videos


def test_frames_without_a_rate_are_told(tmp_path: Path, clip: Path) -> None:
    path = save(tmp_path / "x.xml", tool_exports.cvat_task("other", TWO))
    refused(path, r"video 'other': times are in frames, and nothing tells the frame rate")
    with pytest.raises(ValueError, match=r"times are in frames, and other: no such file in"):
        loaded(path, clip)
    near = save(tmp_path / "near.xml", tool_exports.cvat_task("Video", TWO))
    with pytest.raises(ValueError, match=r"Video: no such file in .*, but there is 'video'"):
        loaded(near, clip)
    both = tmp_path / "both"
    both.mkdir()
    save(both / "x.xml", tool_exports.cvat_task("other", TWO))
    save(both / "y.xml", tool_exports.cvat_task("video", [("run", 0.1, 0.5)]))
    skipping = loaded(both, clip, bad_videos="skip")
    assert list(skipping.videos) == ["video"]
    assert noted(skipping) == {"videos left out, as times in frames need their files": 1}
    assert list(loaded(both, clip, blocked=("other",)).videos) == ["video"]


def test_tracks_of_cvat(tmp_path: Path) -> None:
    """Visible twice; to the end of the video; every fifth frame; a skeleton."""
    info = tmp_path / "info.csv"
    info.write_text("video,fps,count\nvideo,10,1000\n")

    def read(tracks: str, step: int = 1) -> Segments:
        text = edited(
            tool_exports.cvat_task("video", [], step), ("</annotations>", f"{tracks}</annotations>")
        )
        return segments_of(read_annotations(save(tmp_path / "x.xml", text), info_csv=[info]))

    def track(*shapes: tuple[int, int]) -> str:
        boxes = (f'<box frame="{frame}" outside="{out}"/>' for frame, out in shapes)
        return f'<track id="0" label="run">{"".join(boxes)}</track>'

    assert read(track((3, 0), (4, 0), (5, 1))) == [("run", 0.3, 0.5)]
    assert read(track((3, 0), (5, 1), (8, 0), (9, 0), (10, 1))) == [
        ("run", 0.3, 0.5),
        ("run", 0.8, 1),
    ]
    assert read(track((3, 0), (4, 0), (5, 0))) == [("run", 0.3, 0.6)]
    assert read(track((10, 0), (15, 0), (20, 1)), step=5) == [("run", 1.0, 2.0)]
    assert read(track((10, 0), (15, 0)), step=5) == [("run", 1.0, 2.0)]
    assert read(track((3, 1), (4, 0), (6, 1))) == [("run", 0.4, 0.6)]
    points = '<points label="a" outside="{0}"/><points label="b" outside="1"/>'
    skeletons = "".join(
        f'<skeleton frame="{frame}">{points.format(out)}</skeleton>'
        for frame, out in ((3, 0), (4, 0), (5, 1))
    )
    assert read(f'<track id="0" label="run">{skeletons}</track>') == [("run", 0.3, 0.5)]
    # Tags, of CVAT for images: the frames that have one, one after the other.
    images = "".join(
        f'<image id="{i}" name="frame_{i:06d}"><tag label="run" source="manual"/></image>'
        for i in (7, 5, 6, 9)
    )
    assert read(images) == [("run", 0.5, 0.8), ("run", 0.9, 1.0)]
    tags = '<tag label="run" frame="5"/><tag label="run" frame="10"/>'
    assert read(tags, step=5) == [("run", 0.5, 1.5)]
    for bad, message in (
        ('<track id="4"><box frame="1" outside="0"/></track>', "track 4: 'label' is missing"),
        ('<track id="4" label="run"><box outside="0"/></track>', "track 4: frame must be a finite"),
        (
            '<track label="run" task_id="9"><box frame="1"/></track>',
            "track 0: it belongs to task '9'",
        ),
    ):
        with pytest.raises(ValueError, match=f"x.xml: {message}"):
            read(bad)


def test_sources_of_cvat(tmp_path: Path) -> None:
    """In the task, beside it, or nowhere."""
    info = tmp_path / "info.csv"
    info.write_text("video,fps,count\nvideo,100,1000\nmy task,100,1000\n")
    path, source = tmp_path / "x.xml", "<source>video.mp4</source>"
    text = tool_exports.cvat_task("video", TWO)
    beside = edited(text, (source, ""), ("</task>", f"</task>{source}"))
    annotations = read_annotations(save(path, beside), info_csv=[info])
    assert segments_of(annotations) == TWO and not noted(annotations)
    annotations = read_annotations(save(path, edited(text, (source, ""))), info_csv=[info])
    assert segments_of(annotations, "my task") == TWO
    ((phrase, count),) = noted(annotations).items()
    assert "without a source" in phrase and count == 1


def test_projects_and_subsets_of_cvat(tmp_path: Path) -> None:
    tasks = "".join(
        f"<task><id>{i}</id><name>t{i}</name><subset>{s}</subset><source>{n}</source></task>"
        for i, s, n in ((3, "Train", "a.mp4"), (4, "Test", "b.MOV"))
    )
    tracks = "".join(
        f'<track id="0" label="run" task_id="{i}" subset="x"><box frame="{10 * i}" outside="0"/>'
        f'<box frame="{10 * i + 5}" outside="1"/></track>'
        for i in (4, 3)
    )
    meta = f"<meta><project><tasks>{tasks}</tasks></project></meta>"
    path = save(tmp_path / "x.xml", f"<annotations>{meta}{tracks}</annotations>")
    info = tmp_path / "info.csv"
    info.write_text("video,fps,count\na,10,1000\nb,10,1000\n")
    annotations = read_annotations(path, info_csv=[info])
    assert {n: (v.subset, segments_of(annotations, n)) for n, v in annotations.videos.items()} == {
        "a": ("Train", [("run", 3.0, 3.5)]),
        "b": ("Test", [("run", 4.0, 4.5)]),
    }


# ------------------------------------------------------------------ Label Studio


def test_regions_of_label_studio(tmp_path: Path, clip: Path) -> None:
    task = tool_exports.label_studio_task(1, "video", TWO)
    task["annotations"][0]["result"] += [
        {"type": "labels", "value": {"start": 0.5, "end": 0.75, "labels": ["run", "jump"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
        {"type": "timelinelabels", "value": {"ranges": [{"start": 3, "end": 3}]}},
    ]
    annotations = read_annotations(save(tmp_path / "x.json", [task]))
    assert segments_of(annotations) == [*TWO, ("run", 0.5, 0.75), ("jump", 0.5, 0.75)]
    assert noted(annotations) == {
        "Label Studio results without a beginning and end left out": 1,
        "Label Studio regions without a label left out": 1,
    }
    del task["data"]["fps"]
    task["annotations"][0]["result"] = [tool_exports.label_studio_region("run", 0.0, 0.5)]
    path = save(tmp_path / "x.json", [task])
    refused(path, "nothing tells the frame rate")
    read_back = loaded(path, clip)
    assert segments_of(read_back) == [("run", 0.0, 2.0)]  # frames 1 to 50 of 25 a second
    assert noted(read_back) == {"videos with Label Studio's frames read at their file's rate": 1}
    info = tmp_path / "info.csv"
    info.write_text("video,fps,count\nvideo,24,96\n")  # as Label Studio counts them by default
    ((_, start, end),) = segments_of(loaded(path, clip, info_csv=(str(info),)))
    assert (start, end) == pytest.approx((0.0, 50 / 24), abs=1e-6)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/12/0a1b2c3d-my-video.mp4", "my-video"),
        ("/data/upload/3/0a1b2c3d-K%C3%BCche_1.mp4", "Küche_1"),
        ("/data/local-files/?d=some%20folder/0a1b2c3d-video.MP4", "0a1b2c3d-video"),
        ("https://example.org/x/my%20video.webm?token=a.mp4", "my video"),
        ("s3://bucket/folder/video.mkv", "video"),
        ("video.mp4", "video"),
        ("C:\\videos\\video.mp4", "video"),
        ("http://[bad/video.mp4", "video"),
    ],
)
def test_addresses_of_label_studio(tmp_path: Path, address: str, name: str) -> None:
    task = tool_exports.label_studio_task(1, "x", TWO)
    for key in ("video", "clip"):
        task["data"] = {key: address, "fps": 100, "note": "text"}
        assert list(read_annotations(save(tmp_path / "x.json", [task])).videos) == [name]


def test_tasks_of_label_studio(tmp_path: Path) -> None:
    """Skipped, not yet annotated, annotated twice, guessed by a model."""
    path = tmp_path / "x.json"
    tasks = [tool_exports.label_studio_task(i, f"v{i}", TWO) for i in range(4)]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    guess = {"result": [tool_exports.label_studio_region("guess", 1, 2)], "score": 0.5}
    tasks[2] |= {"annotations": [], "predictions": [guess]}
    annotations = read_annotations(save(path, tasks))
    assert list(annotations.videos) == ["v0", "v3"] and annotations.classes == ("high jump", "run")
    assert noted(annotations) == {"tasks that nobody has annotated left out": 2}
    tasks[3]["annotations"] *= 2
    refused(save(path, tasks), "task 3: it has been annotated 2 times; mark one")
    tasks[3]["annotations"][1] = tasks[3]["annotations"][0] | {"ground_truth": True, "result": []}
    assert segments_of(read_annotations(save(path, tasks)), "v3") == []
    minimal = [
        {"id": 1, "video": "a.mp4", "label": [{"start": 1, "end": 2.5, "labels": ["run"]}]},
        {"id": 2, "video": "b.mp4", "sentiment": "good", "annotator": 3},
    ]
    minimal[0] |= {"annotator": 1, "annotation_id": 5}
    annotations = read_annotations(save(path, minimal))
    assert {n: segments_of(annotations, n) for n in annotations.videos} == {
        "a": [("run", 1.0, 2.5)],
        "b": [],
    }
    refused(save(path, [{"annotator": 1, "x": 2}]), "task 0: its data do not tell which video")


def test_all_problems_of_an_export_are_told(tmp_path: Path) -> None:
    tasks = [tool_exports.label_studio_task(i, f"v{i}", TWO) for i in range(3)]
    tasks[0]["annotations"][0]["result"][1] = {"value": {"ranges": [{"start": "x", "end": 2}]}}
    tasks[0]["annotations"][0]["result"][0]["value"]["ranges"] = [3]
    tasks[1]["annotations"] = 3
    tasks[2]["data"]["video"] = "v0.avi"
    path = save(tmp_path / "x.json", tasks)
    refused(path, "4 problems")
    for message in ("result 0: 'range'", "result 1: start", "task 1: 'annotations'", "'v0'"):
        refused(path, message)


# ------------------------------------------------------------------ VIA 3


def test_attributes_of_via(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    project = tool_exports.via_project({"video": TWO, "empty": []})
    project["attribute"]["1"] |= {"aname": "action", "options": {"run": "Running"}}
    project["attribute"]["2"] = {"aname": "who", "type": 2, "options": {"0": "Ann", "1": "Ben"}}
    annotations = read_annotations(save(path, project))
    assert [s[0] for s in segments_of(annotations)] == ["Running", "high jump"]
    assert segments_of(annotations, "empty") == []
    first, second = project["metadata"].values()
    first["av"] = {"1": "", "2": "0,1"}
    labels = [s[0] for s in segments_of(read_annotations(save(path, project)))]
    assert labels == ["Ann", "Ben", "high jump"]
    second["av"] = {"1": "high jump", "2": "0"}
    refused(save(path, project), "metadata '1_Ab1': 2 attributes have a value")
    project["attribute"]["1"]["aname"] = "TEMPORAL-SEGMENTS"
    labels = [s[0] for s in segments_of(read_annotations(save(path, project)))]
    assert labels == ["Ann", "Ben", "high jump"]
    project["metadata"] |= {
        "still": {"vid": "1", "flg": 0, "z": [3.0], "xy": [], "av": {"1": "run"}},
        "box": {"vid": "1", "flg": 0, "z": [3.0], "xy": [2, 1, 1, 5, 5], "av": {}},
        "file": {"vid": "1", "flg": 0, "z": [], "xy": [], "av": {"1": "run"}},
    }
    annotations = read_annotations(save(path, project))
    assert noted(annotations) == {"VIA annotations other than temporal segments left out": 3}
    project["view"]["1"]["fid_list"] = ["1", "2"]
    refused(save(path, project), "view 1: shows 2 files")


def test_tables_of_via(tmp_path: Path) -> None:
    """Also with segments in two columns, and as a spreadsheet leaves it."""
    path = tmp_path / "x.csv"
    row = ["1_a", '["video.mp4"]', 0, "[1.5,2.5]", "[]", '{"1":"0"}']
    attribute = {"1": {"aname": "Action", "type": 4, "options": {"0": "run"}}}
    still = ["1_b", '["video.mp4"]', 0, "[1.5]", "[2,1,1,5,5]", '{"1":"0"}']
    tool_exports.via_rows(path, [row, still], attribute)
    annotations = read_annotations(path)
    assert segments_of(annotations) == [("run", 1.5, 2.5)]
    assert noted(annotations) == {"VIA annotations other than temporal segments left out": 1}
    path.write_text(
        "# Exported using VGG Image Annotator\n"
        "# CSV_HEADER = metadata_id,file_list,temporal_segment_start,temporal_segment_end,"
        "metadata\n"
        '"1_a","[""video.mp4""]",1.5,2.5,"{""TEMPORAL-SEGMENTS"":""run""}"\n'
    )
    assert segments_of(read_annotations(path)) == [("run", 1.5, 2.5)]
    for cell, message in (
        ('["a.mp4","b.mp4"]', "line 6: 'file_list' must name one"),
        ("video.mp4", "line 6: 'file_list' is not valid JSON"),
    ):
        tool_exports.via_rows(path, [[row[0], cell, *row[2:]]], attribute)
        refused(path, message)


# ------------------------------------------------------------------ ELAN


@pytest.mark.parametrize(
    ("media", "name"),
    [
        ("", "video"),
        (
            '<MEDIA_DESCRIPTOR MEDIA_URL="file:///home/me/my%20film.mts" MIME_TYPE="video/*"/>',
            "my film",
        ),
        (
            '<MEDIA_DESCRIPTOR MEDIA_URL="" RELATIVE_MEDIA_URL="./b.mpg" MIME_TYPE="video/mpeg"/>',
            "b",
        ),
        (
            '<MEDIA_DESCRIPTOR MEDIA_URL="file:///a.wav" MIME_TYPE="audio/x-wav"/>'
            '<MEDIA_DESCRIPTOR MEDIA_URL="file:///c.mp4" MIME_TYPE="video/mp4"/>',
            "c",
        ),
    ],
)
def test_links_of_elan(tmp_path: Path, media: str, name: str) -> None:
    path = save(tmp_path / "x.eaf", tool_exports.elan_file("video", TWO, media))
    annotations = read_annotations(path)
    assert segments_of(annotations, name) == TWO and not noted(annotations)


def test_shapes_of_elan(tmp_path: Path) -> None:
    text = tool_exports.elan_file("video", TWO)
    path = tmp_path / "x.eaf"
    alone = edited(text, ("<MEDIA_DESCRIPTOR", "<PROPERTY"))
    annotations = read_annotations(save(path, alone))
    assert segments_of(annotations, "x") == TWO
    ((phrase, count),) = noted(annotations).items()
    assert "without a linked video" in phrase and count == 1
    later = edited(text, ('MIME_TYPE="video', 'TIME_ORIGIN="500" MIME_TYPE="video'))
    assert segments_of(read_annotations(save(path, later)))[0] == ("run", 1.5, 3.0)
    tiers = (
        '<TIER TIER_ID="notes" PARENT_REF="actions"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a9" '
        'ANNOTATION_REF="a1"><ANNOTATION_VALUE>x</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>'
        '</TIER><TIER TIER_ID="walk"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a7" '
        'TIME_SLOT_REF1="ts0" TIME_SLOT_REF2="ts1"><ANNOTATION_VALUE/></ALIGNABLE_ANNOTATION>'
        "</ANNOTATION></TIER><LINGUISTIC_TYPE"
    )
    annotations = read_annotations(save(path, edited(text, ("<LINGUISTIC_TYPE", tiers))))
    assert segments_of(annotations) == [*TWO, ("walk", 1.0, 2.5)]
    assert noted(annotations) == {
        "ELAN annotations that refer to others left out": 1,
        "ELAN annotations without a text named by their tier": 1,
    }
    unaligned = edited(text, ('ID="ts1" TIME_VALUE="2500"', 'ID="ts1"'))
    annotations = read_annotations(save(path, unaligned))
    assert segments_of(annotations) == TWO[1:]
    assert noted(annotations) == {"ELAN annotations without times of their own left out": 1}
    refused(save(path, edited(text, ("milliseconds", "PAL-frames"))), "times in 'PAL-frames'")
    refused(save(path, edited(text, ('REF2="ts1"', 'REF2="ts9"'))), "annotation a0: there is no")
    refused(save(path, edited(text, ('"2500"', '"x"'))), "annotation a0: time must be a finite")


# ------------------------------------------------------------------ BORIS


def test_events_of_boris(tmp_path: Path) -> None:
    """In the order of time, of two subjects, with points between them."""
    run, jump = boris_front("video", "run"), boris_front("video", "jump")
    other = [*run]
    other[run.index("No focal subject")] = "Ben"
    rows = [
        boris_event(run, "START", 1.0),
        boris_event(other, "START", 1.5),
        boris_event(jump, "POINT", 1.75),
        boris_event(run, "STOP", 2.0),
        boris_event(other, "STOP", 2.5),
    ]
    for delimiter, path in ((",", tmp_path / "x.csv"), ("\t", tmp_path / "x.tsv")):
        table = [[*BORIS_HEAD, *BORIS_EVENTS], *rows]
        text = "".join(delimiter.join(map(str, row)) + "\n" for row in table)
        annotations = read_annotations(save(path, text))
        assert segments_of(annotations) == [("run", 1.0, 2.0), ("run", 1.5, 2.5)]
        assert noted(annotations) == {"BORIS point events left out": 1}
    broken = [rows[0], rows[0], rows[3], rows[3], boris_event(jump, "START", 3.0)]
    write_rows(tmp_path / "x.csv", [[*BORIS_HEAD, *BORIS_EVENTS], *broken])
    for message in (
        "3 problems",
        "line 3: 'run' starts again before a STOP",
        "line 5: 'run' stops, but did not start",
        "line 6: 'jump' starts and never stops",
    ):
        refused(tmp_path / "x.csv", message)


# Until version 7: the file and its length in columns of their own, events below a description.
OLD_SPANS = (
    "Observation id,Observation date,Description,Media file,Total length,FPS,Subject,Behavior,"
    "Behavioral category,Modifiers,Behavior type,Start (s),Stop (s),Duration (s),Comment start,"
    "Comment stop\n"
    "o,2020-01-01 10:00:00,,C:/my clips/video.mp4,60.0,25,No focal subject,run,,,STATE,"
    "1.000,2.500,1.500,,\n"
)
OLD_EVENTS = (
    "Observation id,o\n,\nMedia file(s)\nPlayer #1,/clips/video.mp4\n\n"
    "Observation date,2020-01-01T10:00:00\nDescription,\nTime offset (s),0.000\n\n"
    "Time,Media file path,Total length,FPS,Subject,Behavior,Behavioral category,Comment,Status\n"
    "1.0,/clips/video.mp4,60.0,25,No focal subject,run,,,START\n"
    "2.5,/clips/video.mp4,60.0,25,No focal subject,run,,,STOP\n"
)


@pytest.mark.parametrize("text", [OLD_SPANS, OLD_EVENTS])
def test_older_layouts_of_boris(tmp_path: Path, text: str) -> None:
    """Also as spreadsheets of other countries write them, with times as a clock's."""
    semicolons = text.replace(",", ";")
    for number in ("1.0", "2.5", "1.000", "2.500"):
        semicolons = semicolons.replace(f";{number};", f";{number.replace('.', ',')};")
        semicolons = semicolons.replace(f"\n{number};", f"\n{number.replace('.', ',')};")
    clock = text.replace("2.500,", "00:00:02.500,").replace("\n2.5,", "\n00:00:02.5,")
    for dialect in (text, text.replace(",", "\t"), semicolons, clock):
        assert segments_of(read_annotations(save(tmp_path / "x.csv", dialect))) == [
            ("run", 1.0, 2.5)
        ]
    later = save(tmp_path / "x.csv", OLD_EVENTS.replace("offset (s),0.000", "offset (s),3.000"))
    refused(later, "a time offset of 3.000 s")
    refused(save(later, OLD_EVENTS.replace("STOP", "")), "line 12: 'status' is empty")


def test_media_of_boris(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"

    def rows(source: str, lengths: str, start: float, end: float, offset: float = 0) -> Path:
        front = boris_front("x", "run", source, lengths)
        front[BORIS_HEAD.index("Time offset (s)")] = offset
        span = tool_exports.boris_span(front, "STATE", start, end)
        point = tool_exports.boris_span(front, "POINT", start, start)
        write_rows(path, [[*BORIS_HEAD, *BORIS_SPANS], span, point])
        return path

    two = "player #1:a/v1.mp4;a/v2.mp4|player #2:b/other.mp4"
    annotations = read_annotations(rows(two, "10.000;20.000|30.000", 12.5, 13.0))
    assert segments_of(annotations, "v2") == [("run", 2.5, 3.0)]
    annotations = read_annotations(rows(two, "10.000;20.000|30.000", 2.5, 10.0))
    assert segments_of(annotations, "v1") == [("run", 2.5, 10.0)]
    refused(rows(two, "10.000;20.000|30.000", 9, 11), "line 2: 'run' goes on from one media file")
    refused(rows(two, "10.000|30.000", 9, 11), "line 2: 2 media files, but 1 durations")
    refused(rows("NA", "NA", 1, 2), "line 2: no media file is named")
    refused(rows("player #1:v.mp4", "10.0", 1, 2, offset=3), "line 2: a time offset of 3 s")


# ------------------------------------------------------------------ what is written for them

LABELS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6
).filter(lambda label: label not in ("_DEFAULT", "Ambiguous"))
FRAMES = st.tuples(LABELS, st.integers(0, 500), st.integers(1, 300))
FOUND = st.dictionaries(
    st.sampled_from(["one", "two & <x>", "três 3"]),
    st.lists(FRAMES, max_size=6, unique=True),
    min_size=1,
)


def detections(frames: list[tuple[str, int, int]], fps: float) -> list[Detection]:
    return [Detection(label, a / fps, (a + n) / fps, 1 / (a + 1)) for label, a, n in frames]


@settings(deadline=None)
@given(drawn=FOUND, fps=st.sampled_from([25.0, 40.0, 100.0]))
def test_what_is_written_for_tools_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: dict[str, list[tuple[str, int, int]]],
    fps: float,
) -> None:
    """Equal, on times that frames and milliseconds can hold."""
    folder = tmp_path_factory.mktemp("tools")
    found = {name: detections(frames, fps) for name, frames in drawn.items()}
    media = {name: MediaFile(folder / f"{name}.mp4", fps) for name in found}
    (folder / "one.mp4").touch()
    tools = ToolFiles(folder / "a/ls.json", folder / "elan", folder / "a/via.json")
    tools.make_folders()
    tools.write(found, media)
    for path in (tools.label_studio, tools.elan, tools.via):
        assert path is not None
        annotations = read_annotations(path)
        assert annotations.videos.keys() == found.keys()
        for name, each in found.items():
            wanted = {(d.label, round(d.start_s, 6), round(d.end_s, 6)) for d in each}
            read_back = annotations.videos[name].segments
            assert {(s.label, round(s.start_s, 6), round(s.end_s, 6)) for s in read_back} == wanted
            assert len(read_back) == len(wanted)


@pytest.mark.parametrize("name", ["esc\x1b[1m", os.fsdecode(b"caf\xe9")])
def test_files_for_tools_are_whole_whatever_a_video_is_called(tmp_path: Path, name: str) -> None:
    video = tmp_path / f"{name}.mp4"
    video.touch()
    tools = ToolFiles(tmp_path / "ls.json", tmp_path, tmp_path / "via.json")
    tools.write({name: detections([("run", 0, 50)], 25.0)}, {name: MediaFile(video, 25.0)})
    for path in (tools.label_studio, tmp_path / f"{name}.eaf", tools.via):
        assert path is not None
        (found,) = read_annotations(path).videos.values()
        assert found.segments == (("run", 0.0, 2.0),)


def test_tiers_of_elan_do_not_overlap(tmp_path: Path) -> None:
    each = detections([("run", 0, 50), ("run", 25, 50), ("run", 50, 10), ("run (2)", 30, 5)], 25.0)
    ToolFiles(elan=tmp_path).write({"v": each}, {"v": MediaFile(tmp_path / "v.mp4", None)})
    root = ElementTree.parse(tmp_path / "v.eaf").getroot()
    slots = {s.get("TIME_SLOT_ID"): int(s.get("TIME_VALUE", "")) for s in root.iter("TIME_SLOT")}
    tiers = root.findall("TIER")
    assert len({tier.get("TIER_ID") for tier in tiers}) == len(tiers) == 3
    for tier in tiers:
        spans = sorted(
            (slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")])
            for a in tier.iter("ALIGNABLE_ANNOTATION")
        )
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.slow
def test_scored_predictions_are_written_for_tools(tmp_path: Path) -> None:
    each = detections([("run", 25, 50), ("run", 100, 50), ("jump", 0, 10)], 25.0)
    write_predictions(tmp_path / "found.json", {"v": each})
    record = {"subset": "test", "duration": 10, "frame": 250}
    actions = [{"segment": [1, 3], "label": "run"}, {"segment": [5, 6], "label": "jump"}]
    truth = {"database": {"v": record | {"annotations": actions}}}
    save(tmp_path / "truth.json", truth)
    out = tmp_path / "tools"
    done = script(
        "evaluate/run.py",
        *("--predictions", tmp_path / "found.json", "--annotations", tmp_path / "truth.json"),
        *("--subset", "test", "--threshold", 0.02, "--out", tmp_path / "out"),
        *("--label_studio", out / "ls.json", "--elan", out / "elan", "--via", out / "via.json"),
    )
    assert done.returncode == 0, done.stderr
    for path in ("ls.json", "elan", "via.json"):
        found = segments_of(read_annotations(out / path), "v")
        assert sorted(found) == [("jump", 0.0, 0.4), ("run", 1.0, 3.0)]
    del truth["database"]["v"]["frame"]
    save(tmp_path / "truth.json", truth)
    done = script(
        "evaluate/run.py",
        *("--predictions", tmp_path / "found.json", "--annotations", tmp_path / "truth.json"),
        *("--subset", "test", "--label_studio", out / "ls.json", "--out", tmp_path / "out"),
    )
    assert done.returncode == 1 and "nothing tells the video's frame rate" in done.stderr
