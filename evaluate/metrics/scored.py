"""Detections with the truth that they were scored against, and their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import MeanAP


@dataclass(frozen=True)
class ScoredDetections:
    """The scores of a subset's detections.

    Args:
        truth, detections: what was compared, by video.
        streams: scores of a fused detector's single streams, by name.
        skipped: videos that could not be read and do not count, with causes.
    """

    truth: Mapping[str, Sequence[Segment]]
    detections: Mapping[str, Sequence[Detection]]
    result: MeanAP
    streams: Mapping[str, MeanAP] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
