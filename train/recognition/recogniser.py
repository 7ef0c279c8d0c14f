"""An action recognition network with its classes: from checkpoints, to video files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.datasets.classes import read_classes
from evaluate.metrics.accuracy import LabelSet, flat_names, label_sets, split_scores
from extract.backbone.precision import computing_in
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import TensorFile, read_tensors
from extract.settings.network import NetworkConfig
from extract.tada.convnext import TAdaConvNeXt, TAdaConvNeXtConfig
from extract.tada.frame_resnet import FrameResNet, load_image_resnet
from extract.tada.networks import build_network
from extract.tada.pretrained import recognise_tada
from extract.tada.tada2d import TAda2D, TAda2DConfig, lift_resnet
from train.engine.checkpoint import Checkpoint, load_checkpoint
from train.recognition.clip_lists import set_names
from train.recognition.config import Recognition
from train.recognition.dataset import EvaluationViews, Views, evaluation_views_loader, probe_example

CLASSIFIER = "classifier."
SET_NAMES = {1: [""], 2: ["verb", "noun"]}  # of published files, by their number of classifiers


class Recogniser:
    """A network, the label sets of its classifier, and the settings it was trained with.

    Args:
        sets: its classes, in the order of the logits.
    """

    def __init__(self, config: Recognition, sets: tuple[LabelSet, ...]) -> None:
        self.config, self.sets = config, sets
        self.classes = flat_names(sets)
        self.network = build_network(config.network, len(self.classes))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Recogniser":
        """Load a trained recogniser, in eval mode, with its averaged weights.

        Raises:
            ValueError: the file is missing, damaged or no recogniser's checkpoint.
        """
        return cls.restore(load_checkpoint(path, Recognition), path)

    @classmethod
    def restore(cls, saved: Checkpoint[Recognition], path: str | Path) -> "Recogniser":
        """Build the recogniser of a checkpoint that was read, in eval mode."""
        several = len(saved.config.data.classes) > 1
        recogniser = cls(saved.config, label_sets(saved.classes, several))
        load_state_dict_strict(recogniser.network, saved.ema, path)
        recogniser.network.eval()
        return recogniser

    def recognise(self, path: str | Path, top: int = 5) -> dict[str, list[tuple[str, float]]]:
        """Return the best classes of a video file, with scores that sum to 1 over all classes.

        Returns:
            By label set ("" if there is one only) classes with scores.

        Raises:
            VideoError: the file cannot be read.
        """
        # There is no other video to score if this one is bad.
        config = replace(self.config, data=replace(self.config.data, bad_videos="stop"))
        views = EvaluationViews([probe_example(path)], config, config.direction)
        device = next(self.network.parameters()).device
        with computing_in(config.training.precision, device):
            ((_, scores, _),) = self.score(evaluation_views_loader(views, config, workers=0))
        return {
            each.name: [(each.classes[k], float(part[0, k])) for k in _best(part[0], top)]
            for each, part in zip(self.sets, split_scores(self.sets, scores[None]), strict=True)
        }

    @torch.inference_mode()
    def score(self, batches: Iterable[Views]) -> Iterator[tuple[str, NDArray[np.float64], str]]:
        """Yield every clip's name, scores of all classes [K] and problem (empty if there is none).

        Scores of each label set are probabilities, averaged over the clip's views.

        Raises:
            FloatingPointError: they are NaN.
        """
        device = next(self.network.parameters()).device
        sizes = [len(each.classes) for each in self.sets]
        for batch in batches:
            views = batch.views.flatten(0, 1).split(self.config.evaluation.batch_size)
            logits = torch.cat([self.network(part.to(device)).float() for part in views])
            shares = torch.cat([part.softmax(1) for part in logits.split(sizes, 1)], 1)
            means = shares.double().unflatten(0, (len(batch.videos), -1)).mean(1).cpu().numpy()
            if not np.isfinite(means).all():
                raise FloatingPointError(
                    "the recogniser gives NaN where scores should be: its numbers overflow; "
                    "take an earlier checkpoint"
                )
            for row, (name, mean) in enumerate(zip(batch.videos, means, strict=True)):
                yield name, mean, batch.problems.get(row, "")

    def load_weights(self, path: str | Path) -> str:
        """Load the weights of a file (`network.weights`); return what was loaded, in words.

        The classifier is loaded as well if its classes are the same or, in a file that names none,
        as many.

        Raises:
            ValueError: the file cannot be read or holds another network.
        """
        content = read_tensors(path)
        tensors, what, counts = self._tensors_of(content, path)
        own = self.network.state_dict()
        mine = tuple(len(each.classes) for each in self.sets)
        kept = content.classes == self.classes or (content.classes is None and counts == mine)
        if not kept:
            tensors = {n: t for n, t in tensors.items() if not n.startswith(CLASSIFIER)}
            tensors |= {n: t for n, t in own.items() if n.startswith(CLASSIFIER)}
        load_state_dict_strict(self.network, tensors, path)
        return f"{path}: {what}; its classifier is {'kept' if kept else 'new'}"

    def _tensors_of(
        self, content: TensorFile, path: str | Path
    ) -> tuple[dict[str, Tensor], str, tuple[int, ...]]:
        """Return a file's network in our names, what it is, and how many classes each set has."""
        network, wanted = self.network, self.config.network
        if found := recognise_tada(content, path):
            theirs = network_config(found.config)
            if (theirs.name, theirs.blocks, theirs.width) != (
                wanted.name,
                wanted.blocks,
                wanted.width,
            ):
                raise ValueError(
                    f"network.weights: {path} holds {found}: set network.name {theirs.name}, "
                    f"network.blocks {list(theirs.blocks)} and network.width {theirs.width}"
                )
            return found.tensors, str(found), found.tasks
        tensors = content.tensors
        if "resnet.conv1.weight" in tensors and isinstance(network, FrameResNet):
            return tensors, "a ResNet over frames (Palindrome)", (len(tensors["classifier.bias"]),)
        if "layer1.0.conv1.weight" in tensors and not isinstance(network, TAdaConvNeXt):
            lift = lift_resnet if isinstance(network, TAda2D) else load_image_resnet
            lift(network, tensors, path)  # type: ignore[arg-type]
            return network.state_dict(), "a ResNet for images", ()
        raise ValueError(
            f"network.weights: {path} holds no weights for a network '{wanted.name}'; give "
            "a file of the TAdaConv project, a checkpoint of train/recognise.py, or for "
            "ResNets one for images, as timm and torchvision name its tensors"
        )


def recogniser_from_weights(
    path: str | Path, config: Recognition, classes: Sequence[Path]
) -> Recogniser:
    """Return the recogniser that a published file holds, in eval mode.

    Args:
        config: for its views and crops; sizes are read off the file.
        classes: files with the names of its classes, one for each label set; without any they are
            numbered.

    Raises:
        ValueError: the file cannot be read, holds no such network, or has not so many classes.
    """
    found = recognise_tada(read_tensors(path), path)
    if found is None:
        raise ValueError(
            f"{path} is neither a checkpoint of train/recognise.py nor of the TAdaConv project"
        )
    counts = found.tasks
    names = set_names(classes) if classes else SET_NAMES[len(counts)]
    if classes:
        lists = [read_classes(file).names for file in classes]
    else:
        lists = [tuple(f"class {k}" for k in range(count)) for count in counts]
    if tuple(map(len, lists)) != counts:
        sizes = " and ".join(map(str, counts))
        listed = " and ".join(str(len(names)) for names in lists)
        raise ValueError(f"--classes: {path} has {sizes} classes, but the lists {listed}")
    theirs = network_config(found.config)
    same = replace(config.network, name=theirs.name, blocks=theirs.blocks, width=theirs.width)
    data = replace(config.data, classes=tuple(map(str, classes)))
    sets = tuple(LabelSet(*each) for each in zip(names, lists, strict=True))
    recogniser = Recogniser(replace(config, network=same, data=data), sets)
    load_state_dict_strict(recogniser.network, found.tensors, path)
    recogniser.network.eval()
    return recogniser


def network_config(sizes: TAda2DConfig | TAdaConvNeXtConfig) -> NetworkConfig:
    """Return the settings that make a TAdaConv network of a size."""
    if isinstance(sizes, TAda2DConfig):
        return NetworkConfig("tada2d", sizes.blocks, sizes.width)
    return NetworkConfig("tada_convnextv2", sizes.depths, sizes.widths[0])


def _best(scores: NDArray[np.float64], count: int) -> list[int]:
    return [int(k) for k in np.argsort(-scores, kind="stable")[:count]]
