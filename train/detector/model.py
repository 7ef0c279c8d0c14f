"""A detector: its network loaded from files and saved, and the actions it finds in videos."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from evaluate.annotations import Detection
from extract.backbone.precision import computing_in
from extract.checkpoints.hub import push_folder
from extract.checkpoints.strict import load_state_dict_strict
from extract.parallel.guarded_frames import DecodingProcess
from extract.parallel.lookahead import one_behind
from extract.sampling.windows import Window, evaluation_windows
from train.config import Experiment
from train.data.batch import Batch
from train.data.frame_rates import describe_unlike_rates
from train.data.items import VideoItem
from train.data.live import Frames, arriving_windows
from train.data.video_files import probe_item
from train.data.windows import EvaluationWindows, WindowInputs, evaluation_loader
from train.detector.network import DetectionNetwork
from train.engine.checkpoint import Checkpoint, load_checkpoint
from train.postprocessing.candidates import (
    Candidates,
    Predictions,
    concatenate,
    merge_windows,
    predict_windows,
)
from train.postprocessing.curves import ScoreCurves
from train.postprocessing.live import LiveUpdate, detect_live
from train.published import write_folder


class VideoResult(NamedTuple):
    """A detector's detections and scores in one video.

    Attributes:
        detections: by the results' names (`Detector.stream_names`), best first.
        curves: scores of the detector's own result over time, classes as in `Detector.classes`.
    """

    detections: dict[str, list[Detection]]
    curves: ScoreCurves


class Detector(DetectionNetwork):
    """A temporal action detector: a network with its files and what it finds in videos.

    Attributes:
        frame_rates: the training videos' lowest and highest, of a checkpoint that knows them.
    """

    frame_rates: tuple[float, float] | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Detector":
        """Build the detector of a run's checkpoint."""
        return cls.restore(load_checkpoint(path, Experiment), path)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Detector":
        """Build the detector of a folder that `save_pretrained` has written, or of a checkpoint.

        Args:
            source: a path, or `hf://org/name[@revision]` on the Hugging Face Hub. No code in it
                is run.

        Raises:
            ValueError: it is missing, cannot be downloaded or is damaged.
        """
        return cls.from_checkpoint(source)

    def save_pretrained(self, folder: str | Path, metrics: str | Path | None = None) -> None:
        """Write a folder that `from_pretrained` reads: weights, config.yaml and a model card.

        Args:
            metrics: metrics.json of an evaluation, for the card.
        """
        self._write_folder(Path(folder), metrics, str(folder))

    def push_to_hub(
        self, repo: str, private: bool = False, metrics: str | Path | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hub; return its URL.

        Args:
            repo: `org/name`, which is made if it is not there.
            metrics: metrics.json of an evaluation, for the model card.

        Raises:
            ValueError: it cannot be uploaded; says why.
        """
        with TemporaryDirectory() as folder:
            self._write_folder(Path(folder), metrics, f"hf://{repo}")
            return push_folder(Path(folder), repo, private)

    def _write_folder(self, folder: Path, metrics: str | Path | None, where: str) -> None:
        state = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        content = Checkpoint(self.config, self.classes, state, state, {}, self.frame_rates)
        write_folder(folder, content, Path(metrics) if metrics else None, where)

    @classmethod
    def restore(cls, checkpoint: Checkpoint[Experiment], source: str | Path) -> "Detector":
        """Build the detector that a run was evaluated with: its averaged weights, eval mode."""
        detector = cls(checkpoint.config, checkpoint.classes)
        load_state_dict_strict(detector, checkpoint.ema, source)
        detector.frame_rates = checkpoint.frame_rates
        return detector.eval()

    def detect(
        self, source: str | Path | Frames, fps: float | Fraction | None = None
    ) -> list[Detection]:
        """Find the actions in one video, best first, times in seconds.

        Where steps are counted in frames, Python warns of a rate that no training video had.

        Args:
            source: a file; or frames, uint8 RGB [height, width, 3] each, evenly spaced in time,
                which may come from anywhere and are not kept. The result is that of a file with
                the same frames.
            fps: of the frames; a file has its own.

        Raises:
            VideoError: the file cannot be read.
            ValueError: frames come without fps, or this detector cannot see them one by one.
        """
        if isinstance(source, str | Path):
            item = probe_item(source, self.config.sampling.fps)
            self._warn_of_rate(item.name, item.fps)
            return self.detect_with_scores(item).detections[self.main_output]
        found = [
            (self._find_candidates(batch), video)
            for batch, video in self._arriving_windows(source, fps)
        ]
        windows, seen = zip(*found, strict=True)  # without a frame there was an error
        return merge_windows(windows, seen[-1], self.classes, self.config.evaluation)

    def detect_live(self, frames: Frames, fps: float | Fraction) -> Iterator[LiveUpdate]:
        """Yield the actions in frames that may never end, once windows to come begin after them.

        Memory is bounded. `train.data.live.delay_s` says how late an action comes at most. Scores
        are not always a file's: windows to come may still change what suppresses an action.

        Args:
            frames: as for `detect`; `fps`: frames per second.

        Raises:
            ValueError: the detector cannot see frames one by one, or `fps` is not above 0.
        """
        config = self.config
        windows = self._arriving_windows(frames, fps)
        parts = self.classes, config.evaluation
        yield from detect_live(windows, self._find_candidates, *parts)

    def _arriving_windows(
        self, frames: Frames, fps: float | Fraction | None
    ) -> Iterator[tuple[Batch, VideoItem]]:
        self._check_sees_pixels()
        if fps is None or not 0 < fps < math.inf:
            raise ValueError("give the frames' rate: detect(frames, fps=25)")
        self._warn_of_rate("the source", float(fps))
        inputs = WindowInputs(self.config.sampling, self.config.pixels, self.config.directions)
        return arriving_windows(frames, fps, inputs, self.config.sampling.test_overlap)

    def _warn_of_rate(self, name: str, fps: float) -> None:
        unlike = describe_unlike_rates({name: fps}, self.frame_rates, self.config.sampling)
        if unlike:
            warnings.warn(unlike.removeprefix("warning: "), stacklevel=3)

    def _find_candidates(self, batch: Batch) -> Candidates:
        """Return the candidates in a batch of one window, on the video's timeline."""
        device = self._device()
        with computing_in(self.config.training.precision, device):
            found = predict_windows(self.predict_batch, [batch], self.config.evaluation, device)
        return concatenate(found[self.main_output][batch.videos[0]])

    def detect_with_scores(
        self,
        item: VideoItem,
        of_streams: bool = False,
        workers: int = 0,
        done: Callable[[int], None] = lambda windows: None,
        process: DecodingProcess | None = None,
    ) -> VideoResult:
        """Find the actions in one video, and the scores behind them, in one pass.

        Windows are decoded, predicted and discarded batch by batch: all that is kept of each is its
        strongest points (20 bytes each, at most `evaluation.max_per_window`).

        Args:
            of_streams: the single streams' results, too, by `stream_names`.
            workers: decoding processes; 0 decodes in this one.
            done: called with the number of windows of every finished batch.
            process: decodes in place of this one, if there are no `workers`.

        Raises:
            VideoError: the file cannot be read.
            ValueError: the detector does not read pixels.
        """
        self._check_sees_pixels()
        sampling, evaluation = self.config.sampling, self.config.evaluation
        inputs = WindowInputs(
            sampling,
            self.config.pixels,
            self.config.directions,
            process=None if workers else process,
        )
        windows = EvaluationWindows([item], inputs, sampling.test_overlap)
        curves = ScoreCurves.empty(item, self.windows(item)[0].step, len(self.classes))

        def predict_and_add(batch: Batch) -> Predictions:
            predictions = self.predict_batch(batch, of_streams)
            finish_later(curves.start_adding(predictions[self.main_output], batch))
            return predictions

        loader = evaluation_loader(windows, evaluation.batch_size, workers)
        device = self._device()
        with computing_in(self.config.training.precision, device), one_behind() as finish_later:
            found = predict_windows(
                predict_and_add, _report_progress(loader, done), evaluation, device
            )
        return VideoResult(
            {
                name: merge_windows(videos[item.name], item, self.classes, evaluation)
                for name, videos in found.items()
            },
            curves,
        )

    def _check_sees_pixels(self) -> None:
        if self.config.backbone.mode == "imported":
            raise ValueError(
                f"this detector reads features ({self.config.backbone.imported}), not videos; "
                "evaluate/run.py --cache scores it on features that were imported"
            )

    def _device(self) -> torch.device:
        """Return where the network computes; weights that are held may lie elsewhere."""
        return next(self.streams[0].head.parameters()).device

    def windows(self, item: VideoItem) -> list[Window]:
        """Return the windows of a video that `detect_with_scores` runs over."""
        sampling = self.config.sampling
        return evaluation_windows(item, sampling.test_overlap, sampling)


def _report_progress(batches: Iterable[Batch], done: Callable[[int], None]) -> Iterator[Batch]:
    """Yield the batches, and call `done` with the size of each once it is finished."""
    for batch in batches:
        yield batch
        done(len(batch.videos))
