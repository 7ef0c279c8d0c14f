"""Suppression beside the compiled extension of OpenTAD or ActionFormer, both in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.nms_peer OpenTAD/opentad/models/utils/post_processing/nms
    OMP_NUM_THREADS=1 python -m benchmarks.nms_peer actionformer_release/libs/utils

The folder is of a checkout of yours: its nms.py and its nms_cpu.cpp, which is compiled here (a C++
compiler and ninja are needed). Both get the same candidates and take turns; times are medians of
processor time. Prints a table; "differences" are the largest between segments (seconds) and scores.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.cpp_extension import load

from benchmarks.cases import SUPPRESSED, candidates
from benchmarks.turns import median_seconds
from evaluate.nms import NmsConfig, suppress

EXTENSION = "nms_1d_cpu"


def load_peer(folder: Path, build: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return the `batched_nms` of a checkout, its extension compiled into `build`."""
    (source,) = sorted(folder.rglob("nms_cpu.cpp"))
    flags = ["-O3", "-fopenmp"]
    sys.modules[EXTENSION] = load(
        EXTENSION, [str(source)], extra_cflags=flags, build_directory=build
    )
    spec = spec_from_file_location("peer_nms", folder / "nms.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., tuple[torch.Tensor, ...]] = module.batched_nms
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    with TemporaryDirectory() as build:
        peer = load_peer(args.folder, build)
    print("| candidates | theirs, ms | ours, ms | ours / theirs | survivors | differences |")
    print("|---|---|---|---|---|---|")
    for name, (count, classes, options) in SUPPRESSED.items():
        ours, config = candidates(count, classes), NmsConfig(**options)
        theirs = [torch.from_numpy(part) for part in ours]

        def run_theirs(parts: Any = theirs, c: NmsConfig = config) -> tuple[torch.Tensor, ...]:
            return peer(
                *(part.clone() for part in parts),
                iou_threshold=c.iou_threshold,
                min_score=c.min_score,
                max_seg_num=c.max_segments,
                use_soft_nms=c.method == "soft",
                multiclass=c.multiclass,
                sigma=c.sigma,
                voting_thresh=c.voting_threshold or 0.0,
            )

        def run_ours(parts: Any = ours, c: NmsConfig = config) -> tuple[Any, ...]:
            return suppress(*parts, c)

        there, here = [part.numpy() for part in run_theirs()], run_ours()
        apart = [
            f"{np.abs(a - b).max():.0e}" if len(a) == len(b) else "other survivors"
            for a, b in zip(there[:2], here[:2], strict=True)
        ]
        slow, fast = (
            1000 * each
            for each in median_seconds([run_theirs, run_ours], args.turns, time.process_time)
        )
        print(
            f"| {name} | {slow:.2f} | {fast:.2f} | {fast / slow:.2f} | {len(here[0])} | "
            f"{', '.join(apart)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
