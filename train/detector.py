"""Backbone and head as one detector; from a checkpoint to a model and to segments."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.annotations import Detection
from extract import weights
from extract.backbone import Backbone, Cut
from train import actionformer
from train.actionformer import ActionFormer, HeadOutput
from train.batch import Batch
from train.checkpoint import Checkpoint, load_checkpoint
from train.config import Experiment
from train.dataset import EvaluationWindows, evaluation_loader
from train.items import item_of
from train.predict import detections, predict


class Detector(nn.Module):
    """A temporal action detector: pixels to raw predictions per pyramid point.

    Args:
        config: the experiment whose backbone and head to build.
        classes: names in the order of the logits.
    """

    def __init__(self, config: Experiment, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.backbone = Backbone(config.backbone)
        self.head = ActionFormer(self.backbone.width, len(classes), config.head)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Detector":
        """Build the detector that a run of `train/e2e.py` left in a file."""
        return cls.restore(load_checkpoint(path), path)

    @classmethod
    def restore(cls, checkpoint: Checkpoint, source: str | Path) -> "Detector":
        """Build the detector that a run was evaluated with: its averaged weights, eval mode."""
        detector = cls(checkpoint.config, checkpoint.classes)
        weights.load_strictly(detector, checkpoint.ema, source)
        return detector.eval()

    @classmethod
    def from_opentad(
        cls, path: str | Path, config: Experiment, classes: tuple[str, ...]
    ) -> "Detector":
        """Build a detector from an OpenTAD checkpoint, whose sizes and classes must be known."""
        detector = cls(config, classes)
        backbone, head = weights.from_opentad(weights.read_tensors(path))
        weights.load_strictly(detector.backbone, backbone, path)
        weights.load_strictly(detector.head, actionformer.from_opentad(head), path)
        return detector.eval()

    def load_pretrained(self) -> None:
        """Load the trunk's pretrained weights that the config names, if any."""
        source = self.config.backbone.weights
        if source:
            weights.load_strictly(self.backbone.trunk, weights.read_trunk(source), source)

    def forward(self, inputs: Tensor, mask: Tensor, start: Cut | None = None) -> HeadOutput:
        """Predict from uint8 frames [B, 3, F, H, W], or the activation at a cut, and mask [B, T].

        See `Backbone` and `ActionFormer`.
        """
        return self.predict(self.backbone(inputs, start), mask)

    def predict(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """Predict from features [B, C, F/2] and mask [B, T]."""
        # F/2 tubelets become T feature steps, whatever the number of samples per step.
        steps = mask.shape[1]
        features = F.interpolate(features, size=steps, mode="linear", align_corners=False)
        output: HeadOutput = self.head(features, mask)
        return output

    def run(self, batch: Batch) -> HeadOutput:
        """Predict for a batch, whatever its inputs are."""
        output: HeadOutput = self(batch.inputs, batch.mask, batch.start)
        return output

    def detect(self, path: str | Path) -> list[Detection]:
        """Find the actions in one video file, best first, times in seconds.

        Raises:
            VideoError: the file cannot be read.
        """
        item = item_of(path)
        device = next(self.parameters()).device
        # There is nothing else to go on with if this one is bad.
        config = replace(self.config, data=replace(self.config.data, bad_videos="stop"))
        windows = EvaluationWindows([item], config.sampling.test_overlap, config)
        loader = evaluation_loader(windows, config, workers=0)
        found = predict(self.run, loader, config, device)
        return detections(found[item.name], item, self.classes, self.config.evaluation)

    @torch.no_grad()
    def parameter_counts(self) -> dict[str, int]:
        """Return how many weights the parts have and how many of all learn."""
        return {
            "trunk": sum(p.numel() for p in self.backbone.trunk.parameters()),
            "adapters": sum(p.numel() for p in self.backbone.adapters.parameters()),
            "head": sum(p.numel() for p in self.head.parameters()),
            "learning": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }
