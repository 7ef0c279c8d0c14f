"""Detections as files of annotation tools, for people who correct them.

evaluate/datasets/tools says where the layouts are documented, and reads the files again.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from configs.atomic import write_text
from evaluate.annotations import Detection
from evaluate.datasets.tools.via import SEGMENTS
from evaluate.files.subtitles import sort_by_time

# What XML cannot hold.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff\ud800-\udfff]")
_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"


class MediaFile(NamedTuple):
    """A video's file, or its name if that is all that is known, and its frames per second."""

    path: Path
    fps: float | None


@dataclass(frozen=True)
class ToolFiles:
    """Files to write: of all videos together, and a folder of one file a video."""

    label_studio: Path | None = None
    elan: Path | None = None
    via: Path | None = None

    def make_folders(self) -> None:
        """Make the folders now, not after hours of detection."""
        for file in filter(None, (self.label_studio, self.via)):
            file.parent.mkdir(parents=True, exist_ok=True)
        if self.elan:
            self.elan.mkdir(parents=True, exist_ok=True)

    def write(
        self, found: Mapping[str, Sequence[Detection]], media: Mapping[str, MediaFile]
    ) -> None:
        """Write the files; without a video there is nothing to write.

        Raises:
            ValueError: Label Studio's is wanted, and the frame rate of a video is not known.
        """
        if not found:
            return
        if self.label_studio:
            write_text(self.label_studio, format_label_studio(found, media))
        if self.via:
            write_text(self.via, format_via(found, media))
        for name, detections in found.items() if self.elan else ():
            assert self.elan is not None
            file = self.elan / f"{name}.eaf"
            write_text(file, format_elan(detections, media[name], self.elan))


def format_label_studio(
    found: Mapping[str, Iterable[Detection]], media: Mapping[str, MediaFile]
) -> str:
    """Return tasks with predictions, for a project with this labelling configuration.

    `<View><Video name="video" value="$video" frameRate="$fps"/>
    <TimelineLabels name="actions" toName="video">…</TimelineLabels></View>`

    Frames count from 1. Videos are served from a local folder, see
    https://labelstud.io/guide/storage#Local-storage

    Raises:
        ValueError: the frame rate of a video is not known.
    """
    tasks = []
    for number, (name, detections) in enumerate(found.items(), 1):
        file, fps = media[name]
        if fps is None:
            raise ValueError(
                f"{name}: Label Studio counts frames, but nothing tells the video's frame rate; "
                "give a table under data.info_csv, or detect in the videos themselves"
            )
        regions = [
            _label_studio_region(d, fps, f"{number}-{index}")
            for index, d in enumerate(sort_by_time(detections))
        ]
        scores = [region["score"] for region in regions]
        prediction = {
            "model_version": "palindrome",
            "score": max(scores, default=0.0),
            "result": regions,
        }
        data = {"video": f"/data/local-files/?d={quote(os.fsencode(file.name))}", "fps": fps}
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks, indent=1)


def _label_studio_region(detection: Detection, fps: float, identity: str) -> dict[str, Any]:
    first = round(detection.start_s * fps) + 1
    last = max(first, round(detection.end_s * fps))
    return {
        "id": identity,
        "from_name": "actions",
        "to_name": "video",
        "type": "timelinelabels",
        "value": {
            "ranges": [{"start": first, "end": last}],
            "timelinelabels": [detection.label],
        },
        "score": float(detection.score),
    }


def format_via(found: Mapping[str, Iterable[Detection]], media: Mapping[str, MediaFile]) -> str:
    """Return a project of VIA 3's video annotator; it asks for the files when it is opened."""
    files, views, entries = {}, {}, {}
    labels: dict[str, str] = {}
    for number, (name, detections) in enumerate(found.items(), 1):
        key = str(number)
        files[key] = {"fid": key, "fname": media[name].path.name, "type": 4, "loc": 1, "src": ""}
        views[key] = {"fid_list": [key]}
        for index, d in enumerate(sort_by_time(detections)):
            labels[d.label] = d.label
            times = [float(d.start_s), float(d.end_s)]
            entries[f"{key}_{index:08d}"] = {
                **{"vid": key, "flg": 0, "z": times, "xy": [], "av": {"1": d.label}},
            }
    attribute = {
        **{"aname": SEGMENTS, "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "actions"},
        **{"options": labels, "default_option_id": ""},
    }
    project = {
        **{"pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__"},
        **{"rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__", "pname": "found by palindrome"},
        **{"creator": "palindrome", "created": 0, "vid_list": list(views)},
    }
    shown = {
        **{"file_content_align": "center", "file_metadata_editor_visible": True},
        **{"spatial_metadata_editor_visible": False, "spatial_region_label_attribute_id": ""},
    }
    config = {"file": {"loc_prefix": dict.fromkeys("1234", "")}, "ui": shown}
    content = {
        **{"project": project, "config": config, "attribute": {"1": attribute}, "file": files},
        **{"metadata": entries, "view": views},
    }
    return json.dumps(content)


def format_elan(detections: Iterable[Detection], media: MediaFile, folder: Path) -> str:
    """Return an ELAN file with a tier for each class, of overlapping actions several.

    Args:
        folder: in which it will be, so that the link to the video can move with both.
    """
    schema = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"
    stamp = {"AUTHOR": "palindrome", "DATE": "1970-01-01T00:00:00+00:00"}
    root = Element(
        "ANNOTATION_DOCUMENT", {**stamp, "FORMAT": "3.0", "VERSION": "3.0", schema: _SCHEMA}
    )
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    link = {"MEDIA_URL": _CONTROLS.sub("\ufffd", media.path.name)}
    if media.path.exists():
        relative = os.path.relpath(media.path.resolve(), folder.resolve())
        link = {
            "MEDIA_URL": media.path.resolve().as_uri(),
            "RELATIVE_MEDIA_URL": _CONTROLS.sub("\ufffd", relative),
        }
    kind = "mp4" if media.path.suffix.lower() in (".mp4", ".m4v", ".mov") else "*"
    SubElement(header, "MEDIA_DESCRIPTOR", link, MIME_TYPE=f"video/{kind}")
    order = SubElement(root, "TIME_ORDER")
    tiers: dict[str, tuple[Element, int]] = {}  # with the end of its last annotation
    for number, d in enumerate(sort_by_time(detections), 1):
        label = _CONTROLS.sub("\ufffd", d.label)
        start = round(max(d.start_s, 0.0) * 1000)
        end = max(round(d.end_s * 1000), start + 1)
        tier = _free_tier(root, tiers, label, start)
        tiers[tier.attrib["TIER_ID"]] = tier, end
        for side, time in enumerate((start, end)):
            slot = f"ts{2 * number + side}"
            SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(time))
        slots = {
            "TIME_SLOT_REF1": f"ts{2 * number}",
            "TIME_SLOT_REF2": f"ts{2 * number + 1}",
        }
        outer = SubElement(tier, "ANNOTATION")
        identity = {"ANNOTATION_ID": f"a{number}", **slots}
        inner = SubElement(outer, "ALIGNABLE_ANNOTATION", identity)
        SubElement(inner, "ANNOTATION_VALUE").text = label
    kind_of_tier = {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    SubElement(root, "LINGUISTIC_TYPE", kind_of_tier, GRAPHIC_REFERENCES="false")
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _free_tier(
    root: Element, tiers: Mapping[str, tuple[Element, int]], label: str, start: int
) -> Element:
    """Return a tier of a class in which nothing goes on, as annotations of one may not overlap."""
    number = 1
    while True:
        name = label if number == 1 else f"{label} ({number})"
        if name not in tiers:
            return SubElement(root, "TIER", TIER_ID=name, LINGUISTIC_TYPE_REF="default-lt")
        tier, end = tiers[name]
        if end <= start:
            return tier
        number += 1
