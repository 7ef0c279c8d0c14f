"""JSON in ActivityNet's layout: also HACS, FineAction, THUMOS-14 of OpenTAD and ActionFormer."""

from typing import Any

from evaluate.datasets.fields import get_field
from evaluate.datasets.records import AnnotationSource, Dataset, Record


def read_activitynet(content: dict[str, Any], source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos of `{"database": {video: record}}`, as they are."""
    for name, record in get_field(content, "database", f"{source.path}").items():
        with dataset.collect():
            dataset.whole_video(name, Record(f"{source.path}: video {name!r}", record))
