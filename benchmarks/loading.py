"""Time loading a published transformer beside reading its file, and count the memory.

    python -m benchmarks.loading [--size h] [--cold]

Writes a file of random numbers in mmaction2's layout, as a pickle and as safetensors. Then
processes take turns: one reads the file's bytes, one builds the backbone and loads the file into
it. Linux only; with `--cold`, as root, the page cache is dropped before each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.sizes import FILES, HOME, experiment
from extract.backbone.backbone import Backbone
from extract.backbone.pretrained import load_trunk
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.key_maps import MMACTION, invert_map, rename_key
from extract.settings.backbone import TrunkConfig
from extract.settings.units import TUBELET

CACHES = Path("/proc/sys/vm/drop_caches")
PIECE = 2**24
"""Bytes read at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=[*FILES, "tiny"], default="h")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from memory")
    parser.add_argument("--work", choices=["read", "load"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(measure_work(args.work, args.size, args.file)))
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for path in write_weights(args.size, Path(folder)):
            compare_loading(path, args.size, args.repeats, args.cold)


def write_weights(size: str, folder: Path) -> tuple[Path, Path]:
    """Write a size's transformer as a pickle and as safetensors."""
    config = experiment(size).backbone.trunk
    state = to_mmaction(VideoMAE(config).state_dict(), config)
    paths = folder / f"{size}.pth", folder / f"{size}.safetensors"
    torch.save({"meta": {}, "state_dict": state}, paths[0])
    save_file(state, paths[1])
    os.sync()  # dirty pages are not dropped from the page cache
    return paths


def to_mmaction(trunk: dict[str, Tensor], config: TrunkConfig) -> dict[str, Tensor]:
    """Return a transformer's tensors as mmaction2 names and shapes them."""
    shape = (3, TUBELET, config.patch, config.patch)
    patches = {"patch_embed.weight": trunk["patch_embed.weight"].unflatten(1, shape)}
    return {
        f"backbone.{rename_key(n, invert_map(MMACTION))}": t for n, t in (trunk | patches).items()
    }


def compare_loading(path: Path, size: str, repeats: int, cold: bool) -> None:
    """Print the cost of reading and of loading a file: medians over the repeats."""
    command = [sys.executable, "-m", "benchmarks.loading", "--size", size, "--file", str(path)]
    found: dict[str, list[dict[str, float]]] = {"read": [], "load": []}
    for _ in range(repeats):
        for work, results in found.items():
            if cold:
                CACHES.write_text("3")
            done = subprocess.run([*command, "--work", work], check=True, stdout=subprocess.PIPE)
            results.append(json.loads(done.stdout))
    read, load = (statistics.median(r["seconds"] for r in found[work]) for work in found)
    nbytes = path.stat().st_size
    kept, peak = (
        statistics.median(r[name] for r in found["load"]) / nbytes for name in ("kept", "peak")
    )
    print(
        f"{path.name}, {nbytes / 1e6:,.0f} MB: read in {read:.2f} s, loaded in {load:.2f} s "
        f"({load / read:.2f} x); memory in multiples of the file: {kept:.2f} afterwards, at most "
        f"{peak:.2f} with the file's own pages, which the system can reclaim"
    )


def measure_work(work: str, size: str, path: Path) -> dict[str, float]:
    """Return the seconds of reading or loading a file, and bytes of memory: kept, and the peak."""
    config = replace(experiment(size).backbone, weights=str(path), mode="frozen")
    tiny = experiment("tiny").backbone.trunk
    load_trunk(VideoMAE(tiny), HOME / "demo/videomae_tiny.safetensors")  # imports what it needs
    before, began = memory_use(), time.perf_counter()
    if work == "read":
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE):
                pass
    else:
        backbone = Backbone(config)
        load_trunk(backbone.trunk, path)
    seconds = time.perf_counter() - began
    return {"seconds": seconds} | {name: rise - before[name] for name, rise in memory_use().items()}


def memory_use() -> dict[str, int]:
    """Return the bytes of this process that belong to no file, and its peak of all bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "kept": 1024 * int(status["RssAnon"].split()[0]),
        "peak": 1024 * int(status["VmHWM"].split()[0]),
    }


if __name__ == "__main__":
    main()
