"""Predictions files and the truth that they are scored against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.loader import load
from evaluate.annotations import (
    Annotations,
    Detection,
    Segment,
    Video,
    read_annotations,
    select_videos,
)
from evaluate.files.predictions import join_predictions, read_predictions, scoring_problems
from evaluate.mean_ap import mean_average_precision
from evaluate.metrics.scored import ScoredDetections
from evaluate.nms import NmsConfig
from train.config import DataConfig, Experiment
from train.data.truth import load_annotations

THUMOS_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class LoadedPredictions:
    """The detections of one or several files, and the truth of a subset.

    Args:
        problems: what in the detections cannot score.
        videos: all that are annotated, by name; `folder`: where a config has their files.
    """

    detections: Mapping[str, Sequence[Detection]]
    truth: Mapping[str, Sequence[Segment]]
    subset: str
    tious: Sequence[float]
    problems: Sequence[str]
    videos: Mapping[str, Video]
    folder: Path | None

    def score(self) -> ScoredDetections:
        """Return the scores at the tIoUs.

        Raises:
            ValueError: there is no truth, or a number is not finite.
        """
        result = mean_average_precision(self.truth, self.detections, self.tious)
        return ScoredDetections(self.truth, self.detections, result)

    def check_found(self) -> None:
        """Raise ValueError, with likely causes, if there is no segment of any of the videos."""
        if not any(self.detections.get(name) for name in self.truth):
            raise ValueError(
                f"not one segment was found in {len(self.truth)} videos of subset '{self.subset}': "
                "what made the file found nothing, or it has other videos or names"
            )


def load_predictions(
    paths: Sequence[Path],
    config: Path | None = None,
    overrides: Sequence[str] = (),
    annotations: Path | None = None,
    subset: str | None = None,
    tious: Sequence[float] = THUMOS_TIOUS,
) -> LoadedPredictions:
    """Return what files hold, joined and suppressed again if there are several, with its truth.

    Args:
        config, overrides: an experiment, which brings annotations and tIoUs.
        annotations, tious: used where there is no config; annotations and subset are needed then.
        subset: default: the config's test subset.

    Raises:
        ValueError: a file is absent or malformed.
    """
    files, nms, folder = [read_predictions(path) for path in paths], NmsConfig(), None
    experiment = load(Experiment, config, overrides) if config else None
    if experiment is not None:
        folder = Path(experiment.data.videos)
        tious, nms = experiment.evaluation.tious, experiment.evaluation.nms
    annotated, subset = load_truth(experiment.data if experiment else None, annotations, subset)
    truth = {video.name: video.segments for video in select_videos(annotated, subset)}
    found = files[0] if len(files) == 1 else join_predictions(files, nms)
    problems = scoring_problems(found, truth, annotated.classes, subset)
    return LoadedPredictions(found, truth, subset, tious, problems, annotated.videos, folder)


def load_truth(
    data: DataConfig | None, file: Path | None, subset: str | None
) -> tuple[Annotations, str]:
    """Return the annotations that predictions are held against, and the subset.

    Args:
        data: of an experiment; None takes the annotation `file`, and then needs a `subset`.

    Raises:
        ValueError: annotations are absent or malformed.
    """
    if data is not None:
        return load_annotations(data), subset or data.test_subset
    assert file is not None and subset is not None
    if not file.exists():
        raise ValueError(f"--annotations: there is no file or folder {file}")
    return read_annotations(file), subset
