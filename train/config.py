"""A whole experiment as one typed object with defaults; YAML files in configs/ say what differs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

from evaluate.nms import NmsConfig
from extract.settings.backbone import BackboneConfig, Precision
from extract.settings.cache import CacheConfig
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction, SamplingConfig
from extract.settings.units import TUBELET
from train.modeling.config import FusionConfig, HeadConfig

Compile = Literal["off", "blocks", "all"]


@dataclass(frozen=True)
class DataConfig:
    """Videos and their annotations.

    Args:
        annotations: file, or folder of a dataset's published files (evaluate.annotations);
            `videos`: folder of `<name>.<extension>`.
        classes: file with one class a line, in the order of the logits, or as datasets publish it
            (evaluate.datasets.classes); null sorts the labels.
        info_csv: files with fps and frame counts, for annotations that lack them.
        train_subset, validation_subset, test_subset: names as the annotations write them;
            validation null trains without validation.
        blocked: videos to exclude everywhere.
        bad_videos: `stop` at files that are missing or cannot be read, or `skip` them, counted.
        class_agnostic: learn where actions are, regardless of class; classes may come from
            `evaluation.video_scores`.
        min_share: training actions of at most this share of their video are not learned; 0.01 in
            the published runs on ActivityNet and FineAction.
        frame_cache: folder where end-to-end training keeps its videos' frames, decoded and small;
            null decodes them in every epoch.
        frame_cache_gb: most that folder may hold; null: as much as the disk has.
    """

    annotations: str
    videos: str
    train_subset: str = "training"
    validation_subset: str | None = "validation"
    test_subset: str = "validation"  # most datasets publish no labels of their test subset
    classes: str | None = None
    info_csv: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    bad_videos: Literal["stop", "skip"] = "stop"
    class_agnostic: bool = False
    min_share: float = 0.0
    frame_cache: str | None = None
    frame_cache_gb: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_share < 1:
            raise ValueError("data.min_share must be a share of a video, at least 0 and below 1")
        if self.frame_cache is not None and not self.frame_cache.strip():
            raise ValueError("data.frame_cache: give a folder, or null for none")
        if self.frame_cache_gb is not None and not self.frame_cache_gb > 0:
            raise ValueError("data.frame_cache_gb must be above 0, or null for no limit")


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimizer, the schedule and the loader.

    Args:
        epochs: length of the cosine schedule; `stop_epoch`: where training ends, null at its end.
        updates: length of the schedule in updates, whatever the number of videos: all that is
            counted in epochs is scaled; null counts in epochs, as `epochs` given over a file does.
        warmup_epochs: length of the linear warm-up; `warmup_start`: where it begins, as a share of
            the full rates.
        global_batch: windows of an update, over all processes, however many there are;
            `accumulate`: parts in which each process takes its share, one after the other, which
            needs less memory and gives the same gradients.
        lr: of heads and fusion; `backbone_lr`: of the adapters, or of the whole trunk in full mode.
        weight_decay: of AdamW; biases and norms have none, adapters have it on all their weights.
        clip_norm: bound of the gradient's norm, of each stream and of the fusion.
        ema_decay: of the exponential moving average (EMA) of the weights, which is what is
            evaluated; initial weights have no share in it. A run that is too short for it gets a
            lower one.
        label_smoothing: share of the classes' targets that is spread over all of them.
        precision: of the forward pass; `fp16` and `bf16` are mixed precision. `tf32` is float32
            that GPUs multiply with 10 bits; with `fp32` they do not.
        compile: what of a step is compiled, which takes minutes at the start and makes steps
            faster on a GPU: nothing (`off`), each of the transformer's blocks and adapters
            (`blocks`), or the whole network, targets and losses (`all`). Numbers differ by
            rounding, and drop path is drawn otherwise with `all`.
        workers: decoding processes per training process.
        validate_every: epochs from one validation to the next; `validate_from`: the first epoch
            that one may follow. There is always one at the end.
        seed: of the initial weights and of all that is drawn while training.
        trackers: programs that get curves of what metrics.jsonl has, continued when a run resumes.
    """

    warmup_ends_full: ClassVar = False  # its last update has the full rate, or the one after it
    cosine_after_warmup: ClassVar = True  # it begins there, or with the first update

    epochs: int = 100
    stop_epoch: int | None = None
    updates: int | None = None
    warmup_epochs: int = 5
    warmup_start: float = 0.0
    global_batch: int = 2
    accumulate: int = 1
    lr: float = 1e-4
    backbone_lr: float = 2e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    label_smoothing: float = 0.0
    precision: Precision = "fp16"  # as published; a CPU needs fp32
    compile: Compile = "off"
    workers: int = 4  # fewer leave a GPU waiting for frames
    validate_every: int = 5
    validate_from: int = 40  # before, the averaged weights still lie far behind
    seed: int = 0
    trackers: tuple[Tracker, ...] = ("tensorboard",)

    @property
    def mixed_precision(self) -> str:
        """Accelerate's name for `precision`."""
        return "no" if self.precision in ("fp32", "tf32") else self.precision

    @property
    def last_epoch(self) -> int:
        """The epoch at which training ends; above `epochs` if settings do not fit."""
        return self.stop_epoch or self.epochs

    def validates_after(self, epoch: int) -> bool:
        """Return whether a run validates once so many epochs are done."""
        due = epoch >= self.validate_from and epoch % self.validate_every == 0
        return due or epoch == self.last_epoch

    def __post_init__(self) -> None:
        counts = ("epochs", "stop_epoch", "updates", "global_batch", "accumulate", "validate_every")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} must be at least 1")
        for name in ("lr", "backbone_lr", "weight_decay", "workers", "warmup_epochs", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative")
        if self.clip_norm <= 0:
            raise ValueError("training.clip_norm must be above 0")
        if not 0 <= self.warmup_start < 1:
            raise ValueError("training.warmup_start must be at least 0 and below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("training.label_smoothing must be at least 0 and below 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("training.ema_decay must be at least 0 and below 1")


@dataclass(frozen=True)
class DetectionTraining(TrainingConfig):
    """Settings of a detector's training.

    Args:
        boundary_weight: of the boundaries' loss; that of the classes weighs 1.
        positives: what the running average of positive points begins at, which counts those of all
            processes; OpenTAD begins on each GPU at its config's value.
        overlapping_ranges: lengths that a pyramid level learns overlap with the next level's, as in
            the published runs on EPIC-Kitchens and Ego4D.
        teacher: checkpoint of a trained detector, such as a fusion of both directions, whose
            predictions a head learns beside the truth (train/heads.py); it begins as the
            checkpoint's.
        teacher_weight: of the losses against its predictions; those against the truth weigh 1.
        every_class: all actions that cover a point give it their classes, not only the shortest
            (OpenTAD's `filter_similar_gt=False`, of Ego4D).
    """

    warmup_ends_full: ClassVar = True  # of W updates, update k has the rate k / (W - 1)

    boundary_weight: float = 1.0
    positives: float = 100.0
    overlapping_ranges: bool = False
    every_class: bool = False
    teacher: str | None = None
    teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and not self.teacher.strip():
            raise ValueError("training.teacher: give a checkpoint, or null for none")
        if self.teacher_weight <= 0:
            raise ValueError("training.teacher_weight must be above 0")
        if self.boundary_weight < 0 or self.positives < 1:
            raise ValueError(
                "training.boundary_weight must not be negative, and training.positives at least 1"
            )


class Trained(Protocol):
    """The settings of any experiment that is trained."""

    @property
    def out(self) -> str: ...

    @property
    def training(self) -> TrainingConfig: ...


@dataclass(frozen=True)
class EvaluationConfig:
    """From raw scores to segments to numbers.

    Args:
        tious: overlaps at which average precision is taken.
        min_score: weaker points are dropped before anything else.
        max_per_window: strongest points kept per window.
        batch_size: windows per forward pass.
        video_scores: file of another classifier's scores of whole videos, which give class-agnostic
            detections their classes; `video_classes`: how many each, the best.
    """

    tious: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    min_score: float = 0.001
    max_per_window: int = 2000
    batch_size: int = 2
    video_scores: str | None = None
    video_classes: int = 2
    nms: NmsConfig = field(default_factory=NmsConfig)

    def __post_init__(self) -> None:
        if not self.tious or not all(0 < tiou <= 1 for tiou in self.tious):
            raise ValueError(f"evaluation.tious must be overlaps in (0, 1], not {self.tious}")
        if not 0 <= self.min_score < 1:
            raise ValueError("evaluation.min_score must be at least 0 and below 1")
        for name in ("max_per_window", "batch_size", "video_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings that decide a run; saved whole beside its results.

    Args:
        out: folder of the run.
        direction: of the first stream, or the only one (`fusion`).
    """

    checkpoint_format: ClassVar = "palindrome-2"
    # One of the two decides; who gives the first alone, over a file with the other, means it.
    supersedes: ClassVar = {
        "training.epochs": "training.updates",
        "sampling.snippet_stride": "sampling.fps",
    }

    out: str
    direction: Direction = "forward"
    data: DataConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    training: DetectionTraining = field(default_factory=DetectionTraining)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of every stream."""
        second = () if self.fusion.method == "none" else (self.fusion.partner,)
        return (self.direction, *second)

    def __post_init__(self) -> None:
        if not self.out.strip():
            raise ValueError("out: give the run a folder")
        coarsest = 2 ** (self.head.levels - 1)
        if self.sampling.window_size % coarsest:
            raise ValueError(
                f"sampling.window_size {self.sampling.window_size} must be a multiple of "
                f"{coarsest}, the coarsest stride of head.levels {self.head.levels}"
            )
        depth = self.backbone.depth
        kept = [cut for cut in self.backbone.cuts if isinstance(cut, int)]
        if not set(self.cache.blocks) <= set(kept):
            raise ValueError(
                f"cache.blocks must be blocks 0 to {len(kept) - 1} of the trunk, from which passes "
                f"can go on, not {', '.join(map(str, self.cache.blocks))}"
            )
        if self.backbone.mode == "imported":
            self._check_imported()
        learns = self.head.learns or self.backbone.learns
        if self.fusion.method == "calibrated" and learns:
            raise ValueError(
                "fusion.method calibrated is fitted to streams that stay as they are; set "
                "head.learns false and backbone.trainable_from_block to the trunk's depth, "
                f"{depth}"
            )
        if self.evaluation.video_scores and not self.data.class_agnostic:
            raise ValueError(
                "evaluation.video_scores gives classes to detections that have none: set "
                "data.class_agnostic true, or omit the scores"
            )
        if self.data.class_agnostic and self.fusion.method == "calibrated":
            raise ValueError("fusion.method calibrated weighs classes; class_agnostic has one")
        if self.sampling.test_whole and self.backbone.mode != "imported":
            raise ValueError(
                "sampling.test_whole is for backbone.mode imported: frames of a whole video would "
                "not fit a device; test on windows"
            )
        if self.sampling.test_whole and self.evaluation.batch_size != 1:
            raise ValueError(
                "sampling.test_whole needs evaluation.batch_size 1: videos are of many lengths"
            )
        transformer = self.backbone.network == "videomae"
        if transformer and self.pixels.size < self.backbone.trunk.patch:
            raise ValueError(
                f"pixels.size {self.pixels.size} must be at least one patch of the backbone, "
                f"{self.backbone.trunk.patch}"
            )

    def _check_imported(self) -> None:
        """Raise ValueError unless rows of imported features are the detector's feature steps."""
        for name, value, wanted in (
            ("sampling.method", self.sampling.method, "window"),
            ("sampling.scale_factor", self.sampling.scale_factor, TUBELET),
            ("sampling.fps", self.sampling.fps, None),
            ("cache.span", self.cache.span, "video"),
            ("direction", self.direction, "forward"),
            ("fusion.method", self.fusion.method, "none"),
        ):
            if value != wanted:
                raise ValueError(f"backbone.mode imported needs {name} {wanted}, not {value}")


def fused_settings(streams: Sequence[Experiment]) -> Experiment:
    """Return what the experiment of a run on trained detectors begins with: the first one's.

    Args:
        streams: experiments of the detectors whose streams it takes.
    """
    first, *others = streams
    # Who taught a stream does not teach what is built on it.
    first = replace(first, training=replace(first.training, teacher=None))
    for other in others:
        first = replace(first, fusion=replace(first.fusion, partner=other.direction))
    if sum(len(each.directions) for each in streams) > 1:
        # Nothing trained already learns on, unless a file or overrides say so.
        backbone = replace(first.backbone, trainable_from_block=first.backbone.depth)
        first = replace(first, head=replace(first.head, learns=False), backbone=backbone)
    return first


def with_cache(overrides: list[str], url: str | None) -> list[str]:
    """Return the overrides with the setting that `--cache URL` is short for."""
    return overrides if url is None else [*overrides, f"--cache.url={url}"]
