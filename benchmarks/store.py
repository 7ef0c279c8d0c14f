"""Time the store of activations: its index, bulk reading, and what codec, chunks and shards cost.

    python -m benchmarks.store                       # all three, minutes
    python -m benchmarks.store index                 # 1,000 against 1,000,000 spans
    python -m benchmarks.store bulk                  # against plain zarr and numpy.load
    python -m benchmarks.store codecs --videos ../shared/clips
    python -m benchmarks.store codecs --activations features.npy   # [rows, …], float16

Times are medians of several passes over the same files, so they are of memory, not of the disk;
ratios are between passes of one run that took turns.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from benchmarks.turns import median_seconds, time_work
from cache.address import Address
from cache.format import arrays
from cache.format.records import CHUNK, RECORD, ArrayInfo, Group, IndexTable, encode_table
from cache.storage import codec
from cache.store import Store

SPANS_A_TABLE, ROWS, WIDTH = 900, 384, 384  # windows of 768 frames; 256 MB fill a journal
PRINT = "0123456789abcdef" * 2
VIDEOS = ("demo.mp4", "test.avi", "flipping_a_pancake.mkv", "part_0.mp4")


def window_address(number: int) -> Address:
    """Return the address of a window by its number; 100 are of one video."""
    frames = np.arange(2 * ROWS, dtype=np.int64) + number % 100 * ROWS
    video = f"{number // 100:064x}"
    return Address(PRINT, "float16", video, "forward", "window", frames, ROWS)


def write_index(folder: Path, spans: int) -> None:
    """Write the indexes of a store as compaction writes them, without the arrays behind them."""
    Store.open(folder, "a").close()
    group = Group(PRINT, "float16", (WIDTH,))
    for first in range(0, spans, SPANS_A_TABLE):
        numbers = range(first, min(first + SPANS_A_TABLE, spans))
        videos = sorted({number // 100 for number in numbers})
        records = np.zeros(len(numbers), RECORD)
        for row, number in zip(records, numbers, strict=True):
            a = window_address(number)
            row["hi"], row["lo"] = np.frombuffer(a.key, "<u8")
            row["video"] = videos.index(number // 100)
        records["place"] = np.arange(len(numbers)) * ROWS
        records["rows"] = records["total"] = ROWS
        digests = [f"{video:064x}" for video in videos]
        chunks = np.zeros(-(-len(numbers) * ROWS // 1365), CHUNK)
        info = ArrayInfo(len(numbers) * ROWS, 1365, 1365 * 64, "0" * 32, [(10**7, 1)] * 4, chunks)
        part = folder / "parts" / f"{first // SPANS_A_TABLE // 30:06}"
        part.mkdir(parents=True, exist_ok=True)
        name = part / f"a{first // SPANS_A_TABLE % 30:06}.idx"
        name.write_bytes(encode_table(IndexTable(records, [group], digests, [], info)))


def measure_index(folder: Path, spans: int) -> dict[str, float]:
    """Return the cost of opening a store and of a look-up, in this process."""
    began = time.perf_counter()
    store = Store.open(folder)
    opened = time.perf_counter() - began
    # Not ru_maxrss, which begins with the parent's.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert len(store.index.records) == spans
    numbers = np.random.default_rng(0).integers(0, spans, 20_000)
    addresses = [window_address(int(number)) for number in numbers]
    keys = [a.key for a in addresses]
    assert all(map(store.contains, addresses))
    lookups = []
    for _ in range(7):
        lookups.append(time_work(lambda: all(map(store.contains, addresses))))
    return {"open": opened, "lookup": statistics.median(lookups) / len(keys), "bytes": peak}


def compare_index(folder: Path, passes: int) -> None:
    found: dict[int, list[dict[str, float]]] = {1_000: [], 1_000_000: []}
    for spans in found:
        write_index(folder / str(spans), spans)
    for _ in range(passes):
        for spans, results in found.items():
            command = [sys.executable, __file__, "here", str(folder / str(spans)), str(spans)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
    print("\n| spans | open | peak memory, libraries included | one lookup |\n|---|---|---|---|")
    for spans, results in found.items():
        opened, lookup, size = (
            statistics.median(r[k] for r in results) for k in ("open", "lookup", "bytes")
        )
        print(f"| {spans:,} | {opened:.2f} s | {size / 1e6:.0f} MB | {lookup * 1e6:.2f} µs |")
    ratios = [b["lookup"] / a["lookup"] for a, b in zip(*found.values(), strict=True)]
    print(f"\nlookup, 1,000,000 : 1,000 = {statistics.median(ratios):.2f}")


def write_plain_zarr(folder: Path, rows: NDArray[np.float16], sharded: bool) -> "zarr.Array[Any]":
    """Write rows with plain zarr in the store's chunks, codecs and, if asked, shards."""
    chunk, shard = arrays.choose_layout(len(rows), rows[0].nbytes)
    made = zarr.create_array(
        str(folder),
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(chunk, *rows.shape[1:]),
        shards=(shard, *rows.shape[1:]) if sharded else None,
        serializer=BytesCodec(endian="little"),
        compressors=[arrays.blosc_codec("float16"), Crc32cCodec()],
        filters=None,
    )
    made[:] = rows
    return made


def compare_bulk(folder: Path, rows: NDArray[np.float16], passes: int) -> None:
    """Print the speed of reading everything, and one window, beside plain zarr and numpy.load."""
    count = len(rows) // ROWS
    rows = rows[: count * ROWS]
    addresses = [window_address(number) for number in range(count)]
    with Store.open(folder / "store", "a") as store, store.writer(compact_bytes=2**40) as writer:
        for number, a in enumerate(addresses):
            writer.write(a, torch.from_numpy(rows[number * ROWS : (number + 1) * ROWS]))
    np.save(folder / "rows.npy", rows)
    store = Store.open(folder / "store")
    sharded = write_plain_zarr(folder / "sharded", rows, True)
    unsharded = write_plain_zarr(folder / "unsharded", rows, False)
    assert np.array_equal(torch.cat(store.read_many(addresses)).numpy(), rows)
    works: list[Callable[[], object]] = [
        lambda: store.read_many(addresses),
        lambda: sharded[:],
        lambda: unsharded[:],
        lambda: np.load(folder / "rows.npy"),
    ]
    whole = median_seconds(works, passes)
    places = np.random.default_rng(0).integers(0, count, 100)
    singles: list[Callable[[], object]] = [
        lambda: [store.read(addresses[i]) for i in places],
        lambda: [sharded[i * ROWS : (i + 1) * ROWS] for i in places],
        lambda: [unsharded[i * ROWS : (i + 1) * ROWS] for i in places],
    ]
    one = [value / len(places) for value in median_seconds(singles, passes)]
    print(f"\n{rows.nbytes / 1e6:.0f} MB of {rows.dtype} {list(rows.shape)}")
    print("| reader | everything | of numpy.load's rate | one window of 384 rows |")
    print("|---|---|---|---|")
    names = ("the store, read_many", "plain zarr, sharded", "plain zarr, chunks only", "numpy.load")
    for name, value, window_s in zip(names, whole, [*one, None], strict=True):
        print(
            f"| {name} | {rows.nbytes / value / 1e6:,.0f} MB/s | {whole[3] / value:.2f} "
            f"| {'' if window_s is None else f'{window_s * 1e3:.2f} ms'} |"
        )
    print(f"\nread_many : plain zarr with the same chunks and shards = {whole[1] / whole[0]:.1f}")


def compare_codecs(folder: Path, name: str, rows: NDArray[np.float16], passes: int) -> None:
    """Print size and speed of other codecs, chunks and shards, varied one at a time."""
    print(f"\n{name}: {rows.nbytes / 1e6:.0f} MB of {rows.dtype} {list(rows.shape)}")
    print(
        "| codec, block | chunk | shard | size | compaction | bulk read | one window |\n"
        "|---|---|---|---|---|---|---|"
    )
    default = (codec.CODEC, arrays.CHUNK_BYTES, arrays.SHARD_BYTES)
    tries = [default]
    tries += [
        (codec.Codec(*other), *default[1:])
        for other in (
            ("lz4", 5, "shuffle", 2**20),
            ("lz4", 5, "bitshuffle", 2**20),
            ("zstd", 1, "shuffle", 0),
            ("zstd", 1, "shuffle", 2**18),
            ("zstd", 5, "shuffle", 2**20),
            ("zstd", 1, "bitshuffle", 2**20),
        )
    ]
    tries += [(default[0], 2**power, default[2]) for power in (16, 18, 22)]
    tries += [(*default[:2], 2**power) for power in (22, 24, 28)]
    for number, (coding, chunk, shard) in enumerate(tries):
        here = folder / f"{name}-{number}".replace(" ", "-")
        with ExitStack() as stack:
            stack.enter_context(patch.object(codec, "CODEC", coding))
            stack.enter_context(patch.object(arrays, "CHUNK_BYTES", chunk))
            stack.enter_context(patch.object(arrays, "CHUNK_ROWS", 2**62))  # benchmarks.small_reads
            stack.enter_context(patch.object(arrays, "SHARD_BYTES", shard))
            block = f"{coding.block_bytes // 1024} KiB" if coding.block_bytes else "Blosc's"
            label = f"{coding.name} {coding.level} {coding.shuffle}, {block}"
            print(_one_try(here, rows, passes, label), flush=True)
        shutil.rmtree(here)


def _one_try(folder: Path, rows: NDArray[np.float16], passes: int, name: str) -> str:
    """Return a line of the table."""
    span = max(min(ROWS, 40_000_000 // rows[0].nbytes), 1)  # blocks' windows are big
    count = len(rows) // span
    template = window_address(0)
    addresses = [
        Address(PRINT, "float16", template.video, "forward", "window", np.array([n]), span)
        for n in range(count)
    ]
    with Store.open(folder, "a") as store, store.writer(compact_bytes=2**40) as writer:
        for number, a in enumerate(addresses):
            writer.write(a, torch.from_numpy(rows[number * span : (number + 1) * span]))
        writer.flush()
        compaction_s = time_work(writer.compact)
    store = Store.open(folder)
    (loaded,) = store.index.tables.values()
    nbytes = count * span * rows[0].nbytes
    places = np.random.default_rng(0).integers(0, count, 20)
    whole, some = median_seconds(
        [
            lambda: store.read_many(addresses),
            lambda: [store.read(addresses[i]) for i in places],
        ],
        passes,
    )
    assert loaded.array is not None
    info = loaded.array.info
    row = rows[0].nbytes
    return (
        f"| {name} | {info.chunk_rows * row / 2**20:.2f} MiB | {info.shard_rows * row / 2**20:.0f} "
        f"MiB | {loaded.stored_bytes / nbytes:.1%} | {nbytes / compaction_s / 1e6:,.0f} MB/s "
        f"| {nbytes / whole / 1e6:,.0f} MB/s | {some / len(places) * 1e3:.2f} ms |"
    )


def compute_activations(videos: Path) -> dict[str, NDArray[np.float16]]:
    """Return activations of real clips: of the demo's backbone, which is trained, and VideoMAE-S.

    Weights of VideoMAE-S are not shipped: it gets random ones of the size that trained ones have.
    """
    from configs.loader import load
    from extract.backbone.backbone import Backbone
    from extract.backbone.pretrained import load_trunk
    from extract.video.reader import VideoReader
    from train.config import Experiment

    home = Path(__file__).resolve().parent.parent / "configs/e2e"
    found: dict[str, NDArray[np.float16]] = {}
    for name, file, size in (
        ("trained, width 96", "demo/forward.yaml", 64),
        ("VideoMAE-S", "thumos14/videomae_s_adapter_forward.yaml", 160),
    ):
        config = load(Experiment, home / file).backbone
        torch.manual_seed(0)
        backbone = Backbone(config).eval()
        if "demo" in file:
            load_trunk(backbone.trunk, str(config.weights))
        else:
            for parameter in backbone.parameters():
                if parameter.ndim > 1:
                    scale = 0.7 / np.sqrt(parameter[0].numel())
                    parameter.data.normal_(0, scale)
        middle = config.trunk.depth // 2
        cuts: dict[str, list[torch.Tensor]] = {f"block {middle}": [], "features": []}
        for video in VIDEOS:
            reader = VideoReader(videos / video)
            count = min(len(reader), 160) // 16 * 16
            frames = torch.from_numpy(reader.frames(np.arange(count))).permute(3, 0, 1, 2)
            frames = torch.nn.functional.interpolate(frames.float(), (size, size), mode="area")
            pixels = frames.round().to(torch.uint8)[None]
            with torch.no_grad():
                tokens = backbone(pixels, stop=middle)
                features = backbone(tokens, start=middle)
            cuts[f"block {middle}"].append(tokens[0])
            cuts["features"].append(features[0].T)
        for cut, parts in cuts.items():
            rows = torch.cat(parts).numpy()
            # Repeated to a size that can be timed, each time by another factor: a codec that
            # noticed would find nothing but the repetition.
            times = max(1, 300_000_000 // rows.nbytes)
            factors = np.random.default_rng(0).uniform(0.9, 1.1, times)
            found[f"{name}, {cut}"] = np.concatenate(
                [(rows * f).astype(np.float16) for f in factors]
            )
    return found


def main() -> None:
    if sys.argv[1:2] == ["here"]:
        print(json.dumps(measure_index(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("parts", nargs="*", default=["index", "bulk", "codecs"])
    parser.add_argument("--activations", type=Path, help="a .npy file [rows, …] of float16")
    parser.add_argument("--videos", type=Path, default=Path("../shared/clips"))
    parser.add_argument("--passes", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "index" in args.parts:
            compare_index(folder, args.passes)
        if "bulk" not in args.parts and "codecs" not in args.parts:
            return
        if args.activations is not None:
            real = {args.activations.name: np.load(args.activations)}
        else:
            real = compute_activations(args.videos)
        if "bulk" in args.parts:
            flat = next((rows for rows in real.values() if rows.shape[1:] == (WIDTH,)), None)
            if flat is None:
                flat = next(iter(real.values())).reshape(-1, WIDTH)
            compare_bulk(folder, flat, args.passes)
        if "codecs" in args.parts:
            for label, rows in real.items():
                compare_codecs(folder, label, rows, args.passes)


if __name__ == "__main__":
    main()
