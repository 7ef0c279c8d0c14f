"""Annotations written as datasets publish them, from one plain form: (video, subset, segments)."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Segments = Sequence[tuple[str, float, float]]  # label, start, end
Videos = Mapping[str, tuple[str, Segments]]

SUFFIX = {"training": "train", "validation": "val", "test": "test"}
EPIC_HEAD = """narration_id participant_id video_id narration_timestamp start_timestamp
    stop_timestamp start_frame stop_frame narration verb verb_class noun noun_class all_nouns
    all_noun_classes"""
LONG = {"training": "train", "validation": "validation", "test": "test_timestamps"}


def write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def activitynet(path: Path, videos: Videos) -> None:
    """Also HACS, FineAction; with the members that OpenTAD and ActionFormer add for THUMOS-14."""
    labels = sorted({label for _, segments in videos.values() for label, _, _ in segments})
    database = {
        name: {
            "subset": subset,
            "url": f"https://example.org/{name}",
            "annotations": [
                {
                    "label": label,
                    "segment": [start, end],
                    "segment(frames)": [30 * start, 30 * end],
                    "label_id": labels.index(label),
                }
                for label, start, end in segments
            ],
        }
        for name, (subset, segments) in videos.items()
    }
    path.write_text(json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database}))


def thumos_text(folder: Path, videos: Videos) -> None:
    """As in TH14_Temporal_annotations_validation and _test: a folder a subset, a file a class."""
    lines: dict[Path, list[str]] = {}
    for name, (subset, segments) in videos.items():
        for label, start, end in segments:
            short = SUFFIX[subset]
            file = folder / f"annotations_{short}" / f"{label}_{short}.txt"
            lines.setdefault(file, []).append(f"{name}  {start} {end}")
    for file, each in lines.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(each) + "\n")
        (file.parent / "readme.txt").write_text("THUMOS CHALLENGE 2014\n\n[video start end]\n")
        (file.parent / "detclasslist.txt").write_text("7 BaseballPitch\n9 BasketballDunk\n")


def multithumos(folder: Path, videos: Videos) -> None:
    """As in multithumos.zip: one folder, its videos' names say the subset."""
    lines: dict[str, list[str]] = {}
    for name, (_, segments) in videos.items():
        for label, start, end in segments:
            lines.setdefault(label, []).append(f"{name} {start:.2f} {end:.2f}")
    (folder / "annotations").mkdir(parents=True)
    for label, each in lines.items():
        (folder / "annotations" / f"{label}.txt").write_text("\n".join(each) + "\n")
    numbered = [f"{index} {label}" for index, label in enumerate(sorted(lines), 1)]
    (folder / "class_list.txt").write_text("\n".join(numbered) + "\n")
    (folder / "README").write_text("MultiTHUMOS")


def afsd(folder: Path, videos: Videos) -> None:
    """`val_Annotation.csv` and `test_Annotation.csv`."""
    tables: dict[str, list[Sequence[Any]]] = {}
    head = ["video", "type", "type_idx", "start", "end", "startFrame", "endFrame"]
    for name, (subset, segments) in videos.items():
        rows = tables.setdefault(SUFFIX[subset], [head])
        for label, start, end in segments:
            rows.append([name, label, 7, start, end, int(30 * start), int(30 * end)])
    for short, rows in tables.items():
        write_rows(folder / f"{short}_Annotation.csv", rows)


def own(path: Path, videos: Videos, subset_column: bool = True) -> None:
    rows: list[Sequence[Any]] = [["video", "start", "end", "label", "subset"]]
    for name, (subset, segments) in videos.items():
        rows += [[name, start, end, label, subset] for label, start, end in segments]
        if not segments:
            rows.append([name, "", "", "", subset])
    write_rows(path, rows if subset_column else [row[:4] for row in rows])


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest / 100:05.2f}"


def epic(folder: Path, videos: Videos, verbs: Sequence[str], nouns: Sequence[str]) -> None:
    """Labels are `verb noun`; a test subset has times only. With the files that lie beside."""
    head = [
        "narration_id",
        "participant_id",
        "video_id",
        "narration_timestamp",
        "start_timestamp",
        "stop_timestamp",
        "start_frame",
        "stop_frame",
        "narration",
        "verb",
        "verb_class",
        "noun",
        "noun_class",
        "all_nouns",
        "all_noun_classes",
    ]
    tables: dict[str, list[Sequence[Any]]] = {}
    for name, (subset, segments) in videos.items():
        hidden = subset == "test"
        rows = tables.setdefault(LONG[subset], [head[:8] if hidden else head])
        for index, (label, start, end) in enumerate(segments):
            verb, noun = label.split()
            row = [f"{name}_{index}", name[:3], name, clock(start), clock(start), clock(end), 1, 2]
            words = [f"{verb} the {noun}", f"{verb}-up", verbs.index(verb), f"{noun}:old"]
            row += [] if hidden else [*words, nouns.index(noun), f"['{noun}', 'x']", "[1, 2]"]
            rows.append(row)
    for part, rows in tables.items():
        write_rows(folder / f"EPIC_100_{part}.csv", rows)
    for kind, names in (("verb", verbs), ("noun", nouns)):
        rows = [[i, name, f"['{name}', '{name}-it']", "kind"] for i, name in enumerate(names)]
        write_rows(
            folder / f"EPIC_100_{kind}_classes.csv", [["id", "key", "instances", "category"], *rows]
        )
        write_rows(folder / f"EPIC_100_tail_{kind}s.csv", [[kind], [1]])
    info = [[name, 100.5, 59.94, "1920x1080"] for name in videos]
    write_rows(
        folder / "EPIC_100_video_info.csv", [["video_id", "duration", "fps", "resolution"], *info]
    )
    # The repository has other tasks' tables in sub-folders, with the same columns and videos.
    write_rows(folder / "UDA_annotations" / "EPIC_100_uda_source_train.csv", tables["train"])


def charades(folder: Path, videos: Videos, classes: Sequence[str], length: float = 100) -> None:
    """With the class list and the other texts of Charades.zip."""
    head = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
    tables: dict[str, list[Sequence[Any]]] = {}
    for name, (subset, segments) in videos.items():
        actions = [f"c{classes.index(label):03d} {s:.2f} {e:.2f}" for label, s, e in segments]
        script = 'A person says "hello",\nthen leaves.'
        front = [name, "HR43", "Kitchen", 6, 7, "Yes", script, "a;b", "One, two;three"]
        rows = tables.setdefault(SUFFIX[subset], [head.split(",")])
        rows.append([*front, ";".join(actions), length])
    for short, rows in tables.items():
        write_rows(folder / f"Charades_v1_{short}.csv", rows)
    coded = "".join(f"c{i:03d} {name}\n" for i, name in enumerate(classes))
    (folder / "Charades_v1_classes.txt").write_text(coded)
    (folder / "Charades_v1_mapping.txt").write_text("c000 o009 v008\n")
    (folder / "README.txt").write_text("The Charades Dataset\n")


def ego4d(folder: Path, videos: Videos) -> None:
    """Every second annotator's label is not primary; a clip begins 10 s into its video."""
    files: dict[str, list[Any]] = {}
    for index, (name, (subset, segments)) in enumerate(videos.items()):
        split = SUFFIX[subset]
        labels = [
            {
                "start_time": start,
                "end_time": end,
                "label": label,
                "video_start_time": start + 10,
                "video_end_time": end + 10,
                "primary": True,
            }
            for label, start, end in segments
        ]
        others = [label | {"primary": False, "label": "not asked for"} for label in labels]
        clip: dict[str, Any] = {
            "clip_uid": name,
            "source_clip_uid": f"source of {name}",
            "video_start_sec": 10.0,
            "video_end_sec": 490.0,
            "video_start_frame": 300,
            "video_end_frame": 14700,
        }
        if subset != "test":
            clip["annotations"] = [
                {"annotator_uid": str(a), "labels": each} for a, each in enumerate((labels, others))
            ]
        video = {"video_uid": f"video {index}", "split": split, "clips": [clip]}
        files.setdefault(split, []).append(video)
    folder.mkdir(parents=True, exist_ok=True)
    for split, listed in files.items():
        part = "test_unannotated" if split == "test" else split
        content = {"version": "v2", "date": "220429", "videos": listed}
        (folder / f"moments_{part}.json").write_text(json.dumps(content))
