"""Mix a model soup: one detector whose weights are the mean of several detectors'.

    python train/soup.py --checkpoint A.pt B.pt [C.pt …] --out runs/soup [--resume]

The checkpoints must descend from the same one, for instance a fusion and what its heads
became on held-out videos (configs/fusion/tuned.yaml), or a stream and what a teacher made of its
head (configs/fusion/distilled.yaml): the mean is often better than either (Wortsman et al., "Model
soups", ICML 2022, and "Robust fine-tuning of zero-shot models", CVPR 2022). Of networks that were
trained apart it is worth nothing. What they have in common stays as it is to the bit, so that
stored activations stay true. At test the soup costs what one detector costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs import cli
from configs.options import ScriptParser
from train.config import Experiment, with_cache

if TYPE_CHECKING:
    from torch import Tensor

    from train.detector.sources import CheckpointSource
    from train.engine.checkpoint import Checkpoint

APART = 0.25  # of the norm; heads that went on from one are 0.02 from their mean, two seeds 0.5


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
    parser.add_argument("--checkpoint", nargs="+", required=True, help="detectors, two or more")
    parser.add_argument("--cache", help="store of activations that the detector's config names")
    parser.add_argument("--resume", action="store_true", help="replace a soup that is there")
    args, overrides = parser.parse()
    if len(args.checkpoint) < 2:
        parser.error("--checkpoint: give two or more detectors")
    from train.detector.sources import resolve_config
    from train.engine.checkpoint import load_checkpoint
    from train.engine.session import is_resuming

    sources = [(path, load_checkpoint(path, Experiment)) for path in args.checkpoint]
    overrides = with_cache(overrides, args.cache)
    config = resolve_config(None, sources[0][1], args.checkpoint[0], overrides)
    begun = is_resuming(Path(config.out), args.resume)
    write_soup(mix_checkpoints(sources)._replace(config=config), begun)


def mix_checkpoints(sources: Sequence[CheckpointSource]) -> Checkpoint[Experiment]:
    """Return the first checkpoint with the mean of all averaged weights.

    Raises:
        ValueError: they are not of one network; names the file and what differs.
    """
    from train.data.frame_rates import join_ranges
    from train.detector.sources import check_same_network

    (_, first), *others = sources
    for path, other in others:
        check_same_network(path, other, first)
    mean = {name: _mean([part.ema[name] for _, part in sources]) for name in first.ema}
    known = join_ranges(part.frame_rates for _, part in sources)
    moved = {name: tensor for name, tensor in mean.items() if tensor is not first.ema[name]}
    apart = max(_distance(part.ema, moved) for _, part in sources)
    print(
        f"the mean of {len(sources)} checkpoints, from which each is {apart:.0%} of its norm away"
    )
    if apart > APART:
        print(
            "warning: these look as if they were trained apart; the mean of such networks is not a "
            "detector: mix those that went on from the same checkpoint"
        )
    return first._replace(model=mean, ema=mean, training={}, frame_rates=known)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    first = tensors[0]
    if all(torch.equal(first, other) for other in tensors[1:]):
        return first
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(first.dtype)


def _distance(weights: dict[str, Tensor], mean: dict[str, Tensor]) -> float:
    """Return how far weights are from their mean, as a share of its norm."""
    pairs = [(weights[name], tensor) for name, tensor in mean.items()]
    moved = sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
    norm = sum(float(other.double().square().sum()) for _, other in pairs)
    return (moved / norm) ** 0.5 if norm else 0.0


def write_soup(soup: Checkpoint[Experiment], begun: bool) -> None:
    """Write the checkpoint and its settings into the folder `config.out`.

    Args:
        begun: whether the folder holds one already, which is replaced.

    Raises:
        ValueError: that is impossible, or a run is writing there.
    """
    from configs.atomic import write_text
    from configs.loader import dump
    from train.engine.checkpoint import save_checkpoint
    from train.engine.run_folder import claim_folder

    out = Path(soup.config.out)
    claim_folder(out, begun)
    write_text(out / "config.yaml", dump(soup.config))
    save_checkpoint(out / "last.pt", soup)
    print(f"the soup is {out / 'last.pt'}; score it with evaluate/run.py --checkpoint")


if __name__ == "__main__":
    cli.run(main)
