"""One or two streams, each a backbone and a head, and their fusion as one module."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.backbone.backbone import Backbone
from extract.backbone.imported import Imported
from extract.backbone.pretrained import load_trunk
from extract.backbone.tada_backbone import TAdaBackbone, load_tada_trunk
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.layouts import ADDED
from extract.checkpoints.strict import Coverage
from extract.settings.backbone import BackboneConfig, Cut
from extract.tada.tada2d import TAda2D
from train.config import Experiment
from train.data.batch import Batch
from train.modeling.actionformer import ActionFormer, HeadOutput
from train.modeling.config import FEATURE_METHODS, HeadConfig
from train.modeling.fusion import FeatureFusion, PredictionFusion
from train.postprocessing.candidates import Prediction, Predictions

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


class DetectionNetwork(nn.Module):
    """One stream or two and their fusion: pixels to raw predictions per pyramid point.

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
    """

    streams: Sequence[Stream]
    fusion: PredictionFusion | FeatureFusion | None
    coverage: Coverage | None = None

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


def _per_step(features: Tensor, mask: Tensor) -> Tensor:
    """Stretch features [B, C, F/2] to one per feature step of mask [B, T]."""
    # F/2 tubelets become T feature steps, whatever the number of samples per step.
    return F.interpolate(features, size=mask.shape[1], mode="linear", align_corners=False)
