"""A survey of an experiment's whole data, made once, which all checks judge."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from configs.progress import ProgressBar
from evaluate.annotations import Annotations, Video, with_duration
from extract.identity.digest import video_digest
from extract.video.files import files_by_name
from extract.video.header import announced_frames
from extract.video.index import VideoError, VideoIndex
from extract.video.probe import probe
from train.config import DataConfig, Experiment
from train.data.items import VideoItem
from train.data.truth import load_annotations, with_truth
from train.data.video_files import make_item
from train.dataset_check.findings import FindingKind


class AnnotationNote(NamedTuple):
    """A problem met while reading the annotations: see `evaluate.annotations.Notice`.

    Attributes:
        of_file: the video's file does not fit them; training may skip it.
    """

    video: str
    entry: int | None
    problem: str | ValueError
    of_file: bool = False


@dataclass(frozen=True)
class SurveyedFile:
    """A readable video file.

    Args:
        announced: frames that its header announces.
        item: with its truth; None where the two do not fit.
    """

    path: Path
    index: VideoIndex
    digest: str
    announced: int
    item: VideoItem | None

    @property
    def frames(self) -> int:
        """Frames that are there."""
        return len(self.index.pts)


@dataclass(frozen=True)
class Survey:
    """Annotations, their problems, and files.

    Args:
        folder: all video files by name, also those that no annotation names.
        files: those of used videos that can be read, by name; `unreadable`: the others' causes.
    """

    config: Experiment
    annotations: Annotations
    notes: list[AnnotationNote]
    folder: dict[str, list[Path]]
    files: dict[str, SurveyedFile]
    unreadable: dict[str, VideoError]

    @cached_property
    def used(self) -> list[Video]:
        """The videos of all subsets that the config names."""
        return [
            v for v in self.annotations.videos.values() if v.subset in subsets(self.config.data)
        ]

    def notice(self, video: str, entry: int | None, problem: str | ValueError) -> None:
        """Record that a file does not fit its annotations; see `evaluate.annotations.Notice`."""
        self.notes.append(AnnotationNote(video, entry, problem, of_file=True))

    def entry_indices(self, name: str, kept: int) -> list[int]:
        """Return the indices of the `kept` segments of a video in its whole list of annotations."""
        gone = {n.entry for n in self.notes if n.video == name and _drops(n.problem)}
        every = range(kept + len(gone - {None}))
        return [entry for entry in every if entry not in gone]

    def videos(self, subset: str | None) -> list[Video]:
        """Return the videos of one subset, which may be none, unlike with `select_videos`."""
        return [video for video in self.used if video.subset == subset]

    def items(self, subset: str | None) -> list[VideoItem]:
        """Return the videos of a subset whose files can be read and fit their annotations."""
        files = [self.files[v.name] for v in self.videos(subset) if v.name in self.files]
        return [file.item for file in files if file.item is not None]


def _drops(problem: str | ValueError) -> bool:
    return isinstance(problem, ValueError) or problem.endswith("dropped")


def unless_skipped(kind: FindingKind, survey: Survey) -> FindingKind:
    """Return the kind, only a warning if bad videos are skipped: then they do not stop training."""
    skips = survey.config.data.bad_videos == "skip"
    return replace(kind, severity="warning") if skips else kind


def subsets(data: DataConfig) -> dict[str, str]:
    """Return the subsets that an experiment names, each with the setting that does."""
    named: dict[str, str] = {}
    for setting in ("train_subset", "validation_subset", "test_subset"):
        if (subset := getattr(data, setting)) is not None:
            named.setdefault(subset, f"data.{setting}")
    return named


def survey_dataset(config: Experiment, timeout_s: float = 60.0) -> Survey:
    """Read the annotations, and index all videos of the subsets in use.

    Args:
        timeout_s: a decoder that shows no progress for so long hangs.

    Raises:
        ValueError: a file of the experiment or the folder of videos is absent, or an annotation
            file cannot be read at all.
    """
    notes: list[AnnotationNote] = []
    annotations = load_annotations(config.data, lambda *note: notes.append(AnnotationNote(*note)))
    videos = Path(config.data.videos)
    if not videos.is_dir():
        raise ValueError(f"data.videos: there is no folder {videos}")
    found = Survey(config, annotations, notes, files_by_name(videos), {}, {})
    present = [video for video in found.used if video.name in found.folder]
    paths = [found.folder[video.name][0] for video in present]
    probed = zip(present, paths, probe(paths, timeout_s), strict=True)
    for video, path, index in ProgressBar(probed, "headers", len(paths), delay=2, leave=False):
        try:
            found.files[video.name] = _survey_file(video, path, index, found)
        except VideoError as error:
            found.unreadable[video.name] = error
        except OSError as error:
            cause = f"{path}: cannot be read as video: {error.strerror}"
            found.unreadable[video.name] = VideoError(cause)
    return found


def _survey_file(
    video: Video, path: Path, index: VideoIndex | VideoError, found: Survey
) -> SurveyedFile:
    """Return a file's facts and its truth; record what does not fit."""
    item = make_item(path, index, found.config.sampling.fps)
    assert isinstance(index, VideoIndex)
    digest, announced = video_digest(path), announced_frames(path, index)
    if video.duration_s is None:
        # Every segment that is far outside is recorded, and then dropped.
        entries = found.entry_indices(video.name, len(video.segments))

        def notice(name: str, place: int | None, problem: str | ValueError) -> None:
            found.notice(name, None if place is None else entries[place], problem)

        video = with_duration(video, item.duration_s, Counter(), notice)
    tolerated, with_its_truth = Counter[str](), None
    try:
        classes = found.annotations.classes
        with_its_truth = with_truth(item, video, found.config.data, classes, tolerated)
        problems: list[str | ValueError] = [*tolerated]
    except ValueError as error:
        problems = [error]
    if announced == item.frames:  # a file that was cut is too short for that reason
        for problem in problems:
            found.notice(video.name, None, problem)
    return SurveyedFile(path, index, digest, announced, with_its_truth)
