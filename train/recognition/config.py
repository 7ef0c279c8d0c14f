"""An action recognition experiment as one typed object with defaults."""

from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal

from extract.settings.backbone import Precision
from extract.settings.network import FEWEST_FRAMES, NetworkConfig
from extract.settings.pixels import CropConfig, ViewConfig
from extract.settings.sampling import Direction
from train.config import TrainingConfig

Pair = tuple[str | int, str | int]


@dataclass(frozen=True)
class LabelledData:
    """The trimmed clips and their labels.

    Args:
        annotations: folder of class folders, or a file or folder of any layout that
            `train.recognition.clip_lists` reads.
        videos: folder of the videos, whatever folders they lie in there; null: the annotations'.
        train_subset, validation_subset, test_subset: names as the annotations have them;
            validation null trains without validation.
        classes: files with one class a line, in the order of the logits, or as datasets publish
            them. None sorts the labels; two are two label sets, as EPIC-Kitchens' verbs and nouns.
        blocked: videos to exclude everywhere.
        bad_videos: `stop` at files that are missing or cannot be read, or `skip` them, counted.
        mirrored: pairs of classes, by name or number, that are each other's mirror image: a
            flipped training clip gets the other one's label.
        reversed_labels: pairs that are each other's time reversal, for `--reversed`; a class that
            is its own reversal is given twice, `[a, a]`.
    """

    annotations: str
    videos: str | None = None
    train_subset: str = "training"
    validation_subset: str | None = "validation"
    test_subset: str = "validation"  # most datasets publish no labels of their test subset
    classes: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    bad_videos: Literal["stop", "skip"] = "stop"
    mirrored: tuple[Pair, ...] = ()
    reversed_labels: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class RecognitionTraining(TrainingConfig):
    """Settings of a recognition network's training.

    Args:
        lr: of the classifier; `backbone_lr`: of all other weights.
        optimizer: AdamW, or SGD with Nesterov's momentum.
        momentum: of SGD.
    """

    cosine_after_warmup: ClassVar = False

    # The published recipes of the TAda networks, where they differ from a detector's.
    global_batch: int = 128
    weight_decay: float = 1e-4
    clip_norm: float = inf
    ema_decay: float = 0.0
    precision: Precision = "bf16"  # fp16's loss scale is not needed
    workers: int = 8  # clips are short: opening and seeking takes most of the time
    validate_from: int = 5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.momentum < 1:
            raise ValueError("training.momentum must be above 0 and below 1")


@dataclass(frozen=True)
class RecognitionEvaluationConfig:
    """Settings of tests, beside `views` and `crops`.

    Args:
        batch_size: views per forward pass.
    """

    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("evaluation.batch_size must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """All settings that decide a run; saved whole beside its results.

    Args:
        out: folder of the run.
        direction: in which clips are seen.
    """

    checkpoint_format: ClassVar = "palindrome-recogniser-1"
    supersedes: ClassVar = {"training.epochs": "training.updates"}  # given alone, over a file

    out: str
    direction: Direction = "forward"
    data: LabelledData
    views: ViewConfig = field(default_factory=ViewConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: RecognitionTraining = field(default_factory=RecognitionTraining)
    evaluation: RecognitionEvaluationConfig = field(default_factory=RecognitionEvaluationConfig)

    def __post_init__(self) -> None:
        if not self.out.strip():
            raise ValueError("out: give the run a folder")
        fewest = FEWEST_FRAMES[self.network.name]
        if self.views.frames < fewest:
            raise ValueError(
                f"views.frames {self.views.frames}: {self.network.name} needs at least {fewest}"
            )
