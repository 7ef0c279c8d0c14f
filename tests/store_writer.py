"""ENTRY for tests: writes, reads or prunes a store of known activations, to be killed or joined.

python -m tests.store_writer write STORE --first 0 --step 1 --log LOG
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cache.address import DTYPES, Address, FingerprintInfo, VideoInfo
from cache.dtypes import Dtype
from cache.store import Missing, Store
from cache.upkeep.prune import prune

COUNT = 400
PATIENCE_S = 200  # of a reader; a machine may be busy
DTYPE_OF: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")


def activation(number: int) -> tuple[Address, torch.Tensor]:
    """Return a known activation: ragged, of three dtypes, two cuts and both directions."""
    rng = np.random.default_rng(number)
    rows = int(rng.integers(1, 40))
    cut = number % 2
    video = f"{number % 7:064x}"
    frames = np.arange(2 * rows, dtype=np.int64) + number
    direction = ("forward", "reversed")[number // 2 % 2]
    if direction == "reversed":
        frames = frames[::-1]
    span = ("window", "video")[number // 4 % 2]
    dtype = DTYPE_OF[number % 3]
    address = Address(f"{cut + 1:032x}", dtype, video, direction, span, frames, rows)
    shape = (rows, 96) if cut else (rows, 4, 24)
    generator = torch.Generator().manual_seed(number)
    return address, torch.randn(shape, generator=generator).to(DTYPES[dtype])


def described(number: int) -> tuple[VideoInfo, FingerprintInfo]:
    """Return what is told with an activation."""
    video = number % 7
    times = np.arange(video + 2) / 7 if video % 2 else None
    return (
        VideoInfo(f"{video:064x}", f"{video}.mp4", 1000 + video, video + 1, 29.97, times),
        FingerprintInfo(f"{number % 2 + 1:032x}", number % 2, "checkpoint.pth", {"size": 160}),
    )


def write(url: str, first: int, step: int, log: Path, flush_every: int) -> None:
    """Write what is not there yet, and say in the log what was put and when it was committed."""
    store = Store.open(url, "a")
    with log.open("a", buffering=1) as say, store.writer(compact_bytes=200_000) as writer:
        say.write("begin\n")
        for count, number in enumerate(range(first, COUNT, step)):
            address, rows = activation(number)
            if not store.contains(address):
                for info in described(number):
                    writer.describe(info)
                half = len(rows) // 2 if number % 5 == 0 else 0
                if half:
                    writer.write(address, rows[:half])
                writer.write(address, rows[half:], half)
                say.write(f"put {number}\n")
            if count % flush_every == flush_every - 1:
                writer.flush()
                say.write("flush\n")
        writer.flush()
        say.write("flush\n")
    with log.open("a") as say:
        say.write("end\n")


def read(url: str) -> None:
    """Read at random, and compare, until everything is there."""
    store = Store.open(url)
    rng = random.Random(os.getpid())
    there: set[int] = set()
    until = time.monotonic() + PATIENCE_S
    while len(there) < COUNT:
        store.refresh()
        time.sleep(0.01)  # two that never pause leave two cores to nobody
        new = sorted(set(range(COUNT)) - there)
        assert time.monotonic() < until, f"{len(new)} never came, {new[:9]} among them"
        for number in {*rng.sample(new, min(40, len(new))), *rng.sample(range(COUNT), 5)}:
            address, rows = activation(number)
            if store.contains(address):
                assert torch.equal(store.read(address), rows), number
                there.add(number)
            else:
                assert number not in there, f"{number} is gone"
                try:
                    store.read(address)
                except Missing:
                    continue
                raise AssertionError("read what is not there")
    both = [activation(number) for number in range(COUNT)]
    for got, (_, rows) in zip(store.read_many([a for a, _ in both]), both, strict=True):
        assert torch.equal(got, rows)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("job", choices=["write", "read", "prune"])
    parser.add_argument("store")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--flush-every", type=int, default=8)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    args = parser.parse_args()
    print("ready", flush=True)
    sys.stdin.readline()
    if args.job == "write":
        write(args.store, args.first, args.step, args.log, args.flush_every)
    elif args.job == "read":
        read(args.store)
    else:
        prune(Store.open(args.store, "a"))


if __name__ == "__main__":
    main()
