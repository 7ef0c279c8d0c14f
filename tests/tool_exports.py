"""Annotations as tools export them, from the plain form of tests/published.py.

Each subset is a folder or file of its own, as tools have no subsets. Frames are hundredths.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from tests.published import Segments, Videos, write_rows

FPS = 100
CVAT_BOX = 'occluded="0" keyframe="1" xtl="1.00" ytl="1.00" xbr="9.00" ybr="9.00" z_order="0"'


def _by_subset(videos: Videos) -> dict[str, dict[str, Segments]]:
    parts: dict[str, dict[str, Segments]] = {}
    for name, (subset, segments) in videos.items():
        parts.setdefault(subset, {})[name] = segments
    return parts


def _file_a_subset(
    folder: Path, videos: Videos, suffix: str, content: Callable[[dict[str, Segments]], Any]
) -> None:
    for subset, part in _by_subset(videos).items():
        (folder / f"{subset}.{suffix}").write_text(json.dumps(content(part)))


def _file_a_video(
    folder: Path, videos: Videos, suffix: str, content: Callable[[str, Segments], str]
) -> None:
    for subset, part in _by_subset(videos).items():
        (folder / subset).mkdir(exist_ok=True)
        for name, segments in part.items():
            (folder / subset / f"{name}.{suffix}").write_text(content(name, segments))


# ------------------------------------------------------------------ CVAT


def cvat_task(name: str, segments: Segments, step: int = 1) -> str:
    """CVAT for video 1.1: visible on every frame, then outside."""
    tracks = []
    for number, (label, start, end) in enumerate(segments):
        first, after = round(start * FPS), round(end * FPS)
        shapes = [
            f'    <box frame="{frame}" outside="{int(frame == after)}" {CVAT_BOX}>\n    </box>\n'
            for frame in (first, after)
        ]
        head = f'  <track id="{number}" label={quoteattr(label)} source="manual">\n'
        tracks.append(head + "".join(shapes) + "  </track>\n")
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta>\n    <task>\n      <id>7</id>\n      <name>my task</name>\n"
        "      <size>9999</size>\n      <mode>interpolation</mode>\n      <overlap>5</overlap>\n"
        "      <bugtracker></bugtracker>\n      <subset></subset>\n"
        f"      <start_frame>0</start_frame>\n      <frame_filter>step={step}</frame_filter>\n"
        "      <labels>\n        <label>\n          <name>x</name>\n        </label>\n"
        f"      </labels>\n      <source>{escape(name)}.mp4</source>\n    </task>\n"
        "    <dumped>2026-01-01 10:00:00.000000+00:00</dumped>\n  </meta>\n"
        + "".join(tracks)
        + "</annotations>\n"
    )


def cvat(folder: Path, videos: Videos) -> None:
    """A file a task, which is a video; the table of frame rates is not CVAT's."""
    _file_a_video(folder, videos, "xml", cvat_task)
    rows = [[name, FPS, 100 * FPS] for name in videos]
    write_rows(folder / "info.csv", [["video", "fps", "count"], *rows])


# ------------------------------------------------------------------ Label Studio


def label_studio_region(label: str, start: float, end: float) -> dict[str, Any]:
    return {
        "id": "aB3",
        "type": "timelinelabels",
        "from_name": "label",
        "to_name": "video",
        "origin": "manual",
        "value": {
            "ranges": [{"start": round(start * FPS) + 1, "end": round(end * FPS)}],
            "timelinelabels": [label],
        },
    }


def label_studio_task(number: int, name: str, segments: Segments) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": [
            {
                "id": number,
                "completed_by": 1,
                "result": [label_studio_region(*segment) for segment in segments],
                "was_cancelled": False,
                "ground_truth": False,
                "lead_time": 3.2,
            }
        ],
        "file_upload": f"0a1b2c3d-{name}.mp4",
        "predictions": [],
        "data": {"video": f"/data/upload/1/0a1b2c3d-{name}.mp4", "fps": FPS},
        "meta": {},
        "inner_id": number,
    }


def label_studio(folder: Path, videos: Videos) -> None:
    _file_a_subset(
        folder,
        videos,
        "json",
        lambda part: [
            label_studio_task(i, name, each) for i, (name, each) in enumerate(part.items(), 1)
        ],
    )


def label_studio_minimal(folder: Path, videos: Videos) -> None:
    _file_a_subset(
        folder,
        videos,
        "json",
        lambda part: [
            {
                "video": f"/data/local-files/?d=clips/{name}.mp4",
                "fps": FPS,
                "id": i,
                "label": [label_studio_region(*segment)["value"] for segment in each],
                "annotator": 1,
                "annotation_id": i,
                "created_at": "2026-01-01T10:00:00.000000Z",
                "lead_time": 3.2,
            }
            for i, (name, each) in enumerate(part.items(), 1)
        ],
    )


# ------------------------------------------------------------------ VIA 3


def via_project(part: dict[str, Segments]) -> dict[str, Any]:
    """A project of the video annotator, whose labels are texts."""
    keys = {name: str(number) for number, name in enumerate(part, 1)}
    return {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "__VIA_PROJECT_REV_ID__",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
            "pname": "actions",
            "data_format_version": "3.1.1",
            "creator": "VGG Image Annotator",
            "created": 1573815248007,
            "vid_list": list(keys.values()),
        },
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
        "attribute": {
            "1": {
                "aname": "TEMPORAL-SEGMENTS",
                "anchor_id": "FILE1_Z2_XY0",
                "type": 4,
                "desc": "Temporal segment annotation added by default",
                "options": {"default": "Default"},
                "default_option_id": "",
            }
        },
        "file": {
            key: {"fid": key, "fname": f"{name}.mp4", "type": 4, "loc": 1, "src": ""}
            for name, key in keys.items()
        },
        "metadata": {
            f"{keys[name]}_Ab{number}": {
                **{"vid": keys[name], "flg": 0, "z": [start, end], "xy": []},
                "av": {"1": label},
            }
            for name, segments in part.items()
            for number, (label, start, end) in enumerate(segments)
        },
        "view": {key: {"fid_list": [key]} for key in keys.values()},
    }


def via(folder: Path, videos: Videos) -> None:
    _file_a_subset(folder, videos, "json", via_project)


def via_rows(path: Path, rows: Iterable[Sequence[Any]], attribute: dict[str, Any]) -> None:
    """The header is a comment; texts are quoted, numbers are not."""
    columns = "metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
    with path.open("w", newline="") as file:
        file.write("# Exported using VGG Image Annotator (http://example.org/via)\n# Notes:\n")
        file.write("# - temporal coordinate of [1.349,2.741] denotes a segment\n")
        file.write(f"# ATTRIBUTE = {json.dumps(attribute)}\n# CSV_HEADER = {columns}\n")
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)


def via_table(folder: Path, videos: Videos) -> None:
    for subset, part in _by_subset(videos).items():
        attribute = via_project(part)["attribute"]
        rows = [
            [
                *(f"1_{n}", json.dumps([f"{name}.mp4"]), 0, json.dumps([start, end]), "[]"),
                json.dumps({"1": label}),
            ]
            for name, segments in part.items()
            for n, (label, start, end) in enumerate(segments)
        ]
        via_rows(folder / f"{subset}.csv", rows, attribute)


# ------------------------------------------------------------------ ELAN


def elan_file(name: str, segments: Segments, media: str = "") -> str:
    media = media or (
        f'<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/my%20videos/{name}.mp4" MIME_TYPE="video/mp4" '
        f'RELATIVE_MEDIA_URL="../{name}.mp4"/>'
    )
    times = [round(time * 1000) for _, start, end in segments for time in (start, end)]
    slots = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="ts{i}" TIME_VALUE="{time}"/>\n' for i, time in enumerate(times)
    )
    annotations = "".join(
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{i}" TIME_SLOT_REF1="ts{2 * i}" '
        f'TIME_SLOT_REF2="ts{2 * i + 1}">\n<ANNOTATION_VALUE>{escape(label)}</ANNOTATION_VALUE>\n'
        "</ALIGNABLE_ANNOTATION></ANNOTATION>\n"
        for i, (label, _, _) in enumerate(segments)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT AUTHOR="me" '
        'DATE="2026-01-01T10:00:00+01:00" FORMAT="3.0" VERSION="3.0" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">\n'
        f'<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">{media}'
        '<PROPERTY NAME="lastUsedAnnotationId">9</PROPERTY></HEADER>\n'
        f"<TIME_ORDER>\n{slots}</TIME_ORDER>\n"
        f'<TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="actions">\n{annotations}</TIER>\n'
        '<LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" '
        'TIME_ALIGNABLE="true"/>\n</ANNOTATION_DOCUMENT>\n'
    )


def elan(folder: Path, videos: Videos) -> None:
    _file_a_video(folder, videos, "eaf", elan_file)


# ------------------------------------------------------------------ BORIS

BORIS_HEAD = (
    *("Observation id", "Observation date", "Description", "Observation duration"),
    *("Observation type", "Source", "Time offset (s)", "Media duration (s)", "FPS", "Subject"),
    *("Behavior", "Behavioral category", "Modifier #1"),
)
BORIS_EVENTS = (
    *("Behavior type", "Time", "Media file name", "Image index", "Image file path", "Comment"),
)
BORIS_SPANS = (
    *("Behavior type", "Start (s)", "Stop (s)", "Duration (s)", "Media file name"),
    *("Image index start", "Image index stop", "Image file path start", "Image file path stop"),
    *("Comment start", "Comment stop"),
)


def boris_front(name: str, label: str, source: str = "", lengths: str = "100.000") -> list[Any]:
    source = source or f"player #1:clips/{name}.mp4"
    first = [f"obs {name}", "2026-01-01 10:00:00", "", 100.0, "Media file(s)", source, 0.0]
    return [*first, lengths, "25.000", "No focal subject", label, "Not defined", "slow"]


def boris_event(front: Sequence[Any], kind: str, time: float) -> list[Any]:
    return [*front, kind, time, "clips/x.mp4", round(25 * time), "NA", ""]


def boris_span(front: Sequence[Any], kind: str, start: float, end: float) -> list[Any]:
    times = f"{start:.3f}", f"{end:.3f}", f"{end - start:.3f}"
    return [*front, kind, *times, "clips/x.mp4", 1, 2, "NA", "NA", "", ""]


def boris_tabular(folder: Path, videos: Videos) -> None:
    for subset, part in _by_subset(videos).items():
        rows = [
            boris_event(boris_front(name, label), kind, time)
            for name, segments in part.items()
            for label, start, end in segments
            for kind, time in (("START", start), ("STOP", end))
        ]
        write_rows(folder / f"{subset}.csv", [[*BORIS_HEAD, *BORIS_EVENTS], *rows])


def boris_aggregated(folder: Path, videos: Videos) -> None:
    for subset, part in _by_subset(videos).items():
        with (folder / f"{subset}.tsv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow([*BORIS_HEAD, *BORIS_SPANS])
            writer.writerows(
                boris_span(boris_front(name, label), "STATE", start, end)
                for name, segments in part.items()
                for label, start, end in segments
            )
