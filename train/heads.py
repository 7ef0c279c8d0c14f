"""Train a head, or a fusion of two streams, on a cache of activations; what it lacks is computed.

    accelerate launch train/heads.py --checkpoint runs/demo/forward/best.pt --cache URL \
        --out runs/heads [--resume] [--head.width 256 …]
    accelerate launch train/heads.py --checkpoint FORWARD.pt REVERSED.pt --cache URL \
        --config configs/fusion/average.yaml --out runs/fused
    accelerate launch train/heads.py --config FILE --cache URL       # on the pretrained backbone
    accelerate launch train/heads.py --checkpoint FORWARD.pth REVERSED.pth --config FILE \
        --fusion.method average --cache URL --out runs/fused         # detectors of OpenTAD

The backbone is the checkpoint's and stays as it is; the config is the checkpoint's, too, with
--config laid over it. Detectors of OpenTAD bring no config: for them the file has to be whole. With
--backbone.trainable_from_block k the adapters from block k on learn along, from the cached
activations behind block k − 1. What comes out is a whole detector.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from cache.store import open_cache
from configs import cli
from extract.activations.activations import Activations
from extract.activations.fingerprints import fingerprints, settings
from extract.activations.stored import Counts
from extract.backbone.backbone import Cut
from train.config import Experiment
from train.data.cached import ensure_cached, evaluation_spans, training_spans
from train.data.videos import Subset, learned_classes, load_annotations, load_subsets
from train.detector.calibrate import fit_class_weights
from train.detector.evaluation import window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of, check_labelled, learning_only, write_run_record
from train.detector.sources import Source, build_detector, merge_configs, read_sources
from train.detector.training import DetectionTask
from train.engine.checkpoint import (
    Checkpoint,
    check_same_run,
    differences,
    load_checkpoint,
    save_checkpoint,
)
from train.engine.loop import START_UP, TrainingRun
from train.engine.run_folder import check_disk_space, claim_folder
from train.engine.session import PASSES, is_resuming, make_accelerator, run_report, with_cache
from train.engine.stopwatch import Stopwatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], help="detector whose backbone to use; two to fuse"
    )
    parser.add_argument("--config", help="YAML file of settings, over the checkpoint's")
    parser.add_argument("--cache", help="store of activations; default: the config's cache.url")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt, if there is one")
    args, overrides = parser.parse_known_args()
    if not (args.checkpoint or args.config):
        parser.error("give --checkpoint, --config or both")
    overrides = with_cache(overrides, args.cache)
    sources = read_sources(args.checkpoint, args.config, overrides)
    config = merge_configs(args.config, sources, overrides)
    train(learning_only(config), sources, args.config or "", args.resume)


def train(config: Experiment, sources: Sequence[Source], file: str, resume: bool) -> None:
    """Train as the config says; leaves checkpoints, metrics and a report in `config.out`.

    Args:
        sources: whose streams to take; none takes the pretrained backbone of the config `file`.
    """
    watch = Stopwatch(START_UP)
    accelerator = make_accelerator(config, cached=bool(config.cache.url))
    out = Path(config.out)
    begun = is_resuming(out, resume)
    if not config.cache.url:
        raise ValueError("--cache: give the store that activations are kept in")
    store = open_cache(config.cache.url)
    annotations = load_annotations(config.data)
    subset = config.data.validation_subset
    names = [config.data.train_subset, *([subset] if subset else [])]
    imported = config.backbone.imported
    subsets = load_subsets(config.data, annotations, names, accelerator, store, imported=imported)
    if imported and accelerator.is_main_process:
        print(
            f"features '{imported}' are imported: there are no pixels, so nothing behind the head "
            "can learn, now or later, and cached blocks, both directions and mirrored or cropped "
            "frames are given up"
        )
    check_labelled(subsets[1] if subset else None, subset)
    detector = build_detector(config, learned_classes(config.data, annotations), sources).to(
        accelerator.device
    )
    if accelerator.is_main_process:
        claim_folder(out, begun)
        check_disk_space(out, detector, keeps_best=subset is not None)
    origins = [path for path, _ in sources] or [file]
    for path in origins:
        if (out / "last.pt").resolve() == Path(path).resolve():
            raise ValueError(f"out: {path} is what this run starts from; choose another --out")
    if not any(p.requires_grad for p in detector.parameters()):
        if begun:
            _check_same_composition(out / "last.pt", config)
        activations = activations_of(detector.eval(), store, origins)
        with run_report(out, accelerator, watch, begun) as notes:
            _compose(detector, activations, subsets[0], accelerator)
            if accelerator.is_main_process:
                notes.about = write_run_record(out, detector, subsets, annotations)
        return
    cut = config.backbone.last_frozen_cut
    assert cut is not None
    if begun:  # said before hours of passes
        _check_same_backbone(out / "last.pt", detector, cut, origins, accelerator)
    activations = activations_of(detector.eval(), store, origins)
    spans = [training_spans(subsets[0], config, d) for d in config.directions]
    for validation in subsets[1:]:
        overlap = config.sampling.validation_overlap
        for some, direction in zip(spans, config.directions, strict=True):
            some += evaluation_spans(validation, overlap, config, direction)
    before = Counts()
    with watch.stage(PASSES):
        cached = ensure_cached(activations, spans, cut, subsets, config, accelerator, before)
    task = DetectionTask(detector, subsets[0], subsets[1] if subset else None, accelerator, cached)
    run = TrainingRun(task, accelerator, begun, watch)
    with run_report(out, accelerator, watch, begun) as notes:
        notes.activations = {"before training": before, "training and validation": task.total}
        if accelerator.is_main_process:
            notes.about = write_run_record(out, detector, subsets, annotations)
        run.train()


def _check_same_composition(path: Path, config: Experiment) -> None:
    """Raise ValueError if something else is there than what this run would leave."""
    kept = load_checkpoint(path, Experiment)
    if kept.training or differences(kept.config, config):
        raise ValueError(f"{path} belongs to another run; choose another --out")


def _compose(
    detector: Detector,
    activations: Sequence[Activations],
    items: Subset,
    accelerator: Accelerator,
) -> None:
    """Leave a fusion in which nothing learns by gradients as a checkpoint, fitted if need be."""
    config = detector.config
    if config.fusion.method == "calibrated":
        overlap = config.sampling.test_overlap
        spans = [evaluation_spans(items, overlap, config, d) for d in config.directions]
        cached = ensure_cached(activations, spans, "features", [items], config, accelerator)
        windows = window_loader(items, overlap, config, accelerator, cached)
        fit_class_weights(detector, windows, accelerator)
    if accelerator.is_main_process:
        state = detector.state_dict()
        path = Path(config.out) / "last.pt"
        save_checkpoint(path, Checkpoint(config, detector.classes, state, state, training={}))
        print(f"nothing to train; the fused detector is {path}")


def _check_same_backbone(
    path: Path, detector: Detector, cut: Cut, origins: Sequence[str], accelerator: Accelerator
) -> None:
    """Raise ValueError unless the run can go on, with the backbones that it began with."""
    config, kept = detector.config, load_checkpoint(path, Experiment)
    check_same_run(path, kept, config, detector.classes, accelerator.num_processes)
    about = settings(config.backbone, config.pixels, config.training.precision)
    then = Detector.restore(kept, path)
    for ours, theirs in zip(detector.streams, then.streams, strict=True):
        if fingerprints(ours.backbone, about)[cut] != fingerprints(theirs.backbone, about)[cut]:
            raise ValueError(
                f"{path.parent} was trained on another backbone than {' and '.join(origins)} has "
                "now; start anew in another `out`"
            )


if __name__ == "__main__":
    cli.run(main, "--resume goes on from last.pt")
