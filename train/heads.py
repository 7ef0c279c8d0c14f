"""Train a head on a cache of activations; what the cache lacks is computed first.

    accelerate launch train/heads.py --checkpoint runs/demo/forward/best.pt --cache URL \
        --out runs/heads [--resume] [--head.width 256 …]
    accelerate launch train/heads.py --config FILE --cache URL       # on the pretrained backbone

The backbone is the checkpoint's and stays as it is; the config is the checkpoint's, too, unless
--config gives another. With --backbone.trainable_from_block k the adapters from block k on learn
along, from the cached activations behind block k − 1. What comes out is a whole detector.
"""

import argparse
import sys
from pathlib import Path

from extract.activations import fingerprints, settings
from train.cached import evaluation_spans, training_spans, up_to_date
from train.checkpoint import Checkpoint, load_checkpoint, refuse_other_run
from train.config import Experiment
from train.disk import claim_folder, refuse_full_disk
from train.errors import EXPECTED, message
from train.items import load_annotations, load_subsets
from train.loop import TrainingRun
from train.start import (
    activations_of,
    begin,
    config_of,
    has_begun,
    learning_only,
    leave_curves,
    leave_record,
    new_detector,
    open_cache,
    refuse_unlabelled,
    with_cache,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", help="detector whose backbone to use")
    parser.add_argument("--config", help="YAML file of the experiment; default: the checkpoint's")
    parser.add_argument("--cache", help="store of activations; default: the config's cache.url")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt, if there is one")
    args, overrides = parser.parse_known_args()
    if not (args.checkpoint or args.config):
        parser.error("give --checkpoint, --config or both")
    try:
        overrides = with_cache(overrides, args.cache)
        saved = load_checkpoint(args.checkpoint) if args.checkpoint else None
        config = config_of(args.config, saved, args.checkpoint, overrides)
        train(learning_only(config), saved, args.checkpoint or args.config, args.resume)
    except EXPECTED as error:
        sys.exit(message(error))


def train(config: Experiment, saved: Checkpoint | None, source: str, resume: bool) -> None:
    """Train as the config says; leaves checkpoints, metrics and a picture in `config.out`."""
    accelerator = begin(config)
    out = Path(config.out)
    begun = has_begun(out, resume)
    if not config.cache.url:
        raise ValueError("--cache: give the store that activations are kept in")
    store = open_cache(config.cache.url)
    annotations = load_annotations(config.data)
    subset = config.data.validation_subset
    names = [config.data.train_subset, *([subset] if subset else [])]
    subsets = load_subsets(config.data, annotations, names, accelerator, store)
    refuse_unlabelled(subsets[1] if subset else None, subset)
    detector = new_detector(config, annotations.classes, saved, source).to(accelerator.device)
    if accelerator.is_main_process:
        claim_folder(out, begun)
        refuse_full_disk(out, detector, keeps_best=subset is not None)
    cut = config.backbone.learns_behind
    assert cut is not None
    if begun:  # said before hours of passes
        kept = load_checkpoint(out / "last.pt")
        processes = accelerator.num_processes
        refuse_other_run(out / "last.pt", kept, config, annotations.classes, processes)
        about = settings(config.backbone, config.pixels, config.training.precision)
        then = new_detector(config, annotations.classes, kept, str(out / "last.pt")).backbone
        if fingerprints(then, about)[cut] != fingerprints(detector.backbone, about)[cut]:
            raise ValueError(
                f"{out} was trained on another backbone than {source} has now; start anew in "
                "another `out`"
            )
    activations = activations_of(detector.eval(), store, source)
    spans = training_spans(subsets[0], config)
    for validation in subsets[1:]:
        spans += evaluation_spans(validation, config.sampling.validation_overlap, config)
    cached = up_to_date(activations, spans, cut, subsets, config, accelerator)
    run = TrainingRun(
        detector, subsets[0], subsets[1] if subset else None, accelerator, begun, cached
    )
    if accelerator.is_main_process:
        leave_record(out, detector, subsets, annotations)
    run.go()
    if accelerator.is_main_process:
        leave_curves(out)


if __name__ == "__main__":
    main()
