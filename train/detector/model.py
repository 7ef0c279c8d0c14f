"""Backbone and head as one detector; from a checkpoint to a model and to segments."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.annotations import Detection
from extract.backbone.backbone import Backbone
from extract.backbone.imported import Imported
from extract.backbone.precision import computing_in
from extract.backbone.pretrained import load_trunk
from extract.backbone.tada_backbone import TAdaBackbone, load_tada_trunk
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.hub import push_folder
from extract.checkpoints.layouts import ADDED
from extract.checkpoints.strict import Coverage, load_state_dict_strict
from extract.parallel.guarded_frames import DecodingProcess
from extract.parallel.lookahead import one_behind
from extract.sampling.windows import Window, evaluation_windows
from extract.settings.backbone import BackboneConfig, Cut
from extract.tada.tada2d import TAda2D
from train.config import Experiment
from train.data.batch import Batch
from train.data.frame_rates import describe_unlike_rates
from train.data.live import Frames, arriving_windows
from train.data.videos import VideoItem, probe_item
from train.data.windows import EvaluationWindows, WindowInputs, evaluation_loader
from train.detector.curves import ScoreCurves
from train.detector.postprocess import (
    Candidates,
    LiveUpdate,
    Prediction,
    Predictions,
    concatenate,
    detect_live,
    merge_windows,
    predict_windows,
)
from train.engine.checkpoint import Checkpoint, load_checkpoint
from train.modeling.actionformer import ActionFormer, HeadOutput
from train.modeling.config import FEATURE_METHODS, HeadConfig
from train.modeling.fusion import FeatureFusion, PredictionFusion
from train.published import write_folder

Trunk = VideoMAE | TAda2D


class Stream(nn.Module):
    """One direction's network: a backbone and a head.

    Args:
        backbone, head: what to build.
        classes: number of classes.
        trunk: another stream's network, to be shared.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        head: HeadConfig,
        classes: int,
        trunk: Trunk | None = None,
    ) -> None:
        super().__init__()
        if backbone.mode == "imported":
            self.backbone: Backbone | TAdaBackbone | Imported = Imported(backbone)
        elif backbone.network == "tada2d":
            assert not isinstance(trunk, VideoMAE)
            self.backbone = TAdaBackbone(backbone, trunk)
        else:
            assert not isinstance(trunk, TAda2D)
            self.backbone = Backbone(backbone, trunk)
        self.head = ActionFormer(backbone.width, classes, head)


class VideoResult(NamedTuple):
    """A detector's detections and scores in one video.

    Attributes:
        detections: by the results' names (`Detector.stream_names`), best first.
        curves: scores of the detector's own result over time, classes as in `Detector.classes`.
    """

    detections: dict[str, list[Detection]]
    curves: ScoreCurves


class Detector(nn.Module):
    """A temporal action detector of one stream or two: pixels to raw predictions per pyramid point.

    Args:
        config: the experiment to build.
        classes: names in the order of the logits.

    Attributes:
        streams: the networks, in the order of `config.directions`. They share a transformer that
            does not learn.
        fusion: combines two streams into one result.
        training_outputs: how many outputs `forward` has.
        main_output: name of the result, among those of `predict`.
        coverage: which tensors of the pretrained weights were used; None if there are none.
        frame_rates: the training videos' lowest and highest, of a checkpoint that knows them.
    """

    streams: Sequence[Stream]
    fusion: PredictionFusion | FeatureFusion | None
    coverage: Coverage | None = None
    frame_rates: tuple[float, float] | None = None

    def __init__(self, config: Experiment, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        parts = config.backbone, config.head, len(classes)
        streams = [Stream(*parts)]
        whole = config.backbone.mode == "full"
        trunk = None if whole else next(iter(_trunks(streams)), None)
        streams += [Stream(*parts, trunk) for _ in config.directions[1:]]
        self.streams = nn.ModuleList(streams)  # type: ignore[assignment]
        self.fusion = None
        method, width = config.fusion.method, config.backbone.width
        if method in FEATURE_METHODS:
            self.fusion = FeatureFusion(config.fusion, width, len(classes), config.head)
            self.start_fusion()
            for stream in streams:  # nothing is learned from the outputs of their own heads
                stream.head.requires_grad_(False).learns = False
        elif method not in ("none", "segments"):
            size = config.sampling.window_size
            points = [size // 2**level for level in range(config.head.levels)]
            self.fusion = PredictionFusion(config.fusion, points, len(classes))
        self.training_outputs = 1 if method in FEATURE_METHODS else len(streams)
        self.main_output = "fused" if len(streams) > 1 else config.direction

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

    def load_pretrained(self) -> None:
        """Load the trunk's pretrained weights that the config names, if any."""
        source = self.config.backbone.weights
        if source:
            for trunk in _trunks(self.streams):
                if isinstance(trunk, TAda2D):
                    self.coverage = load_tada_trunk(trunk, source)
                else:
                    self.coverage = load_trunk(trunk, source)

    def start_fusion(self) -> None:
        """Initialise the head of a fusion of features from the first stream's."""
        if isinstance(self.fusion, FeatureFusion):
            self.fusion.start_from(self.streams[0].head)

    def forward(
        self,
        inputs: Sequence[Tensor],
        mask: Tensor,
        reflection: Tensor,
        start: Cut | None = None,
    ) -> tuple[HeadOutput, ...]:
        """Return the predictions that losses are taken of: output i in the time of stream i.

        Args:
            inputs: of every stream: uint8 frames [B, 3, F, H, W], or the activation at a cut.
            mask: bool [B, T].
            reflection: R of every window, [B].
            start: the cut of the inputs; None for pixels.
        """
        features = self.features(inputs, start)
        if isinstance(self.fusion, FeatureFusion):
            return (self._joined(self.fusion, features, mask, reflection),)
        outputs = self.outputs(features, mask)
        if isinstance(self.fusion, PredictionFusion) and self.fusion.mix is not None:
            fused: tuple[HeadOutput, ...] = self.fusion(
                *outputs, self.reflection_if_opposed(reflection)
            )
            return fused
        return outputs

    def features(self, inputs: Sequence[Tensor], start: Cut | None) -> tuple[Tensor, ...]:
        """Return every stream's features [B, C, F/2] in its own time."""
        return tuple(
            stream.backbone(x, start) for stream, x in zip(self.streams, inputs, strict=True)
        )

    def predict(
        self,
        features: Sequence[Tensor],
        mask: Tensor,
        reflection: Tensor,
        of_streams: bool = False,
    ) -> Predictions:
        """Return the predictions that make up each result, by name: at least `main_output`.

        Args:
            of_streams: the single streams' results, too, by `stream_names`.
        """
        predictions: Predictions = {}
        if isinstance(self.fusion, FeatureFusion):
            fused = self._joined(self.fusion, features, mask, reflection)
            predictions[self.main_output] = ((fused, self.config.direction),)
            if not (of_streams and self.stream_names):
                return predictions
        outputs = self.outputs(features, mask)
        alone: Prediction = tuple(zip(outputs, self.config.directions, strict=True))
        if isinstance(self.fusion, PredictionFusion):
            first, second = outputs
            fused = self.fusion.fuse(first, second, self.reflection_if_opposed(reflection), 0)
            predictions[self.main_output] = ((fused, self.config.direction),)
        elif self.fusion is None:
            predictions[self.main_output] = alone
        if of_streams:
            predictions |= {
                name: (one,) for name, one in zip(self.stream_names, alone, strict=True)
            }
        return predictions

    @property
    def stream_names(self) -> tuple[str, ...]:
        """The names of the results of single streams.

        There are none if adapters learn for a fusion of features: the streams' own heads do not
        learn with them.
        """
        directions = self.config.directions
        if isinstance(self.fusion, FeatureFusion) and self.config.backbone.learns:
            return ()
        return directions if len(set(directions)) == len(directions) else ("first", "second")

    def outputs(self, features: Sequence[Tensor], mask: Tensor) -> tuple[HeadOutput, ...]:
        """Return every stream's own predictions, in its own time."""
        return tuple(
            stream.head(_per_step(x, mask), mask)
            for stream, x in zip(self.streams, features, strict=True)
        )

    def _joined(
        self, fusion: FeatureFusion, features: Sequence[Tensor], mask: Tensor, reflection: Tensor
    ) -> HeadOutput:
        first, second = (_per_step(x, mask) for x in features)
        fused: HeadOutput = fusion(first, second, mask, self.reflection_if_opposed(reflection))
        return fused

    def reflection_if_opposed(self, reflection: Tensor) -> Tensor | None:
        """Return R where the streams run in opposite directions."""
        return reflection if len(set(self.config.directions)) > 1 else None

    def predict_batch(self, batch: Batch, of_streams: bool = False) -> Predictions:
        """Return the predictions for a batch, whatever its inputs are; see `predict`."""
        features = self.features(batch.inputs, batch.start)
        return self.predict(features, batch.mask, batch.reflection, of_streams)

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
        """Yield the actions in frames that may never end, as soon as no later window changes them.

        Memory is bounded. `train.data.live.delay_s` says how late an action comes at most.

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

    @torch.no_grad()
    def count_parameters(self) -> dict[str, int]:
        """Return the number of weights of each part, and of all that learn."""
        parts: dict[str, list[nn.Module]] = {
            "trunk": [*_trunks(self.streams)],
            "adapters": [
                part
                for stream in self.streams
                for name, part in stream.backbone.named_children()
                if f"{name}." in ADDED
            ],
            "heads": [stream.head for stream in self.streams],
            "fusion": [] if self.fusion is None else [self.fusion],
        }
        counts = {
            name: sum(p.numel() for module in modules for p in module.parameters())
            for name, modules in parts.items()
        }
        learning = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return counts | {"learning": learning}


def _trunks(streams: Iterable[Stream]) -> list[Trunk]:
    """Return the networks of streams that have one, each once."""
    backbones = [stream.backbone for stream in streams]
    return list({b.trunk: None for b in backbones if not isinstance(b, Imported)})


def _report_progress(batches: Iterable[Batch], done: Callable[[int], None]) -> Iterator[Batch]:
    """Yield the batches, and call `done` with the size of each once it is finished."""
    for batch in batches:
        yield batch
        done(len(batch.videos))


def _per_step(features: Tensor, mask: Tensor) -> Tensor:
    """Stretch features [B, C, F/2] to one per feature step of mask [B, T]."""
    # F/2 tubelets become T feature steps, whatever the number of samples per step.
    return F.interpolate(features, size=mask.shape[1], mode="linear", align_corners=False)
