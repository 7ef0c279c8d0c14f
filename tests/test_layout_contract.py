"""What every layout of annotations promises: what was written is read, wherever it stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluate.annotations import Annotations, Segment, read_annotations, select_videos
from tests import published, tool_exports
from tests.published import SUFFIX, Videos

LABELS = ("wash spoon", "take tap", "put plate")
VERBS, NOUNS = ("take", "put", "wash"), ("tap", "spoon", "plate")
OWN_WORDS = {name: name for name in SUFFIX}
CODED = {name: f"video_{name}_{{:07d}}" for name in SUFFIX}  # subsets that only names tell
LABELLED = {name: "P01_{}" for name in ("training", "validation")}  # the test subset's are hidden


@dataclass(frozen=True)
class Layout:
    """How a layout is written, and what it keeps of a video.

    Args:
        write: files of the videos into a folder.
        classes: the list that belongs to it, in the folder.
        label: what it keeps of a label.
        names: of videos, per subset.
        subsets: what it calls each.
        empty: whether it can name a video without actions.
        by_class: whether segments come class by class.
        info: the table of frame rates that belongs to it, in the folder.
    """

    write: Callable[[Path, Videos], None]
    classes: str | None = None
    label: Callable[[str], str] = str
    names: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(SUFFIX, "P01_{}"))
    subsets: Mapping[str, str] = field(default_factory=lambda: OWN_WORDS)
    empty: bool = False
    by_class: bool = False
    info: str | None = None


def epic(folder: Path, videos: Videos) -> None:
    """Its writer wants a training file."""
    published.epic(folder, {"P99_9": ("training", [(LABELS[0], 0, 1)]), **videos}, VERBS, NOUNS)


LAYOUTS = {
    "ActivityNet JSON": Layout(
        lambda folder, videos: published.activitynet(folder / "gt.json", videos), empty=True
    ),
    "THUMOS text": Layout(published.thumos_text, by_class=True),
    "MultiTHUMOS": Layout(
        published.multithumos,
        names={name: coded for name, coded in CODED.items() if name != "training"},
        by_class=True,
    ),
    "AFSD tables": Layout(published.afsd),
    "EPIC verbs": Layout(
        epic, "EPIC_100_verb_classes.csv", lambda label: label.split()[0], LABELLED
    ),
    "EPIC nouns": Layout(
        epic, "EPIC_100_noun_classes.csv", lambda label: label.split()[1], LABELLED
    ),
    "Charades": Layout(
        partial(published.charades, classes=LABELS), "Charades_v1_classes.txt", empty=True
    ),
    "Ego4D": Layout(published.ego4d, names=LABELLED, subsets=SUFFIX),
    "own table": Layout(
        lambda folder, videos: published.own(folder / "own.csv", videos), empty=True
    ),
    "CVAT": Layout(tool_exports.cvat, empty=True, info="info.csv"),
    "Label Studio": Layout(tool_exports.label_studio, empty=True),
    "Label Studio, JSON-MIN": Layout(tool_exports.label_studio_minimal, empty=True),
    "VIA 3": Layout(tool_exports.via, empty=True),
    "VIA 3, table": Layout(tool_exports.via_table),
    "ELAN": Layout(tool_exports.elan, empty=True),
    "BORIS, tabular": Layout(tool_exports.boris_tabular),
    "BORIS, aggregated": Layout(tool_exports.boris_aggregated),
}

TIMES = st.integers(0, 9000).map(lambda hundredths: hundredths / 100)
SEGMENTS = st.lists(
    st.tuples(st.sampled_from(LABELS), TIMES, TIMES).map(
        lambda each: (each[0], min(each[1:]), round(max(each[1:]) + 0.5, 2))
    ),
    max_size=4,
    unique=True,
)
DRAWN = st.lists(st.tuples(st.sampled_from(sorted(SUFFIX)), SEGMENTS), min_size=1, max_size=5)


def videos_of(layout: Layout, drawn: list[tuple[str, list[tuple[str, float, float]]]]) -> Videos:
    """Return what the layout can hold of what was drawn, and one video that has an action."""
    drawn = [("validation", [(LABELS[0], 1.0, 2.5)]), *drawn]
    return {
        layout.names[subset].format(number): (subset, segments)
        for number, (subset, segments) in enumerate(drawn)
        if subset in layout.names and (segments or layout.empty)
    }


def read(layout: Layout, folder: Path) -> Annotations:
    return read_annotations(
        folder,
        classes=folder / layout.classes if layout.classes else None,
        info_csv=[folder / layout.info] if layout.info else [],
    )


def segments_of(layout: Layout, segments: published.Segments) -> list[Segment]:
    kept = [Segment(layout.label(label), start, end) for label, start, end in segments]
    return sorted(kept, key=lambda segment: segment.label) if layout.by_class else kept


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=DRAWN)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    drawn: list[tuple[str, list[tuple[str, float, float]]]],
) -> None:
    layout = LAYOUTS[name]
    videos = videos_of(layout, drawn)
    folder = tmp_path_factory.mktemp("layout") / "data"
    folder.mkdir()
    layout.write(folder, videos)
    annotations = read(layout, folder)
    for video, (subset, segments) in videos.items():
        found = annotations.videos[video]
        assert found.subset == layout.subsets[subset]
        mine = list(found.segments)
        if layout.by_class:
            mine.sort(key=lambda segment: segment.label)
        assert mine == segments_of(layout, segments)
        assert {segment.label for segment in mine} <= set(annotations.classes)
    # Every video is in exactly one subset, under the name that the file gives it.
    subsets = {video.subset for video in annotations.videos.values()}
    selected = [video.name for subset in subsets for video in select_videos(annotations, subset)]
    assert sorted(selected) == sorted(annotations.videos)
    assert read(layout, folder) == annotations
