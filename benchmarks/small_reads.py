"""Measure what a random window of features costs to read, by width and by rows of a chunk.

    python -m benchmarks.small_reads --activations features.npy     # [rows, …], float16
    python -m benchmarks.small_reads --before ../palindrome-before  # another checkout, in turns

Without a file, rows are random numbers. Times are CPU time of all threads over files in memory, so
that other programs of the machine count little: medians of passes that take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from cache.address import Address, VideoInfo
from cache.format import arrays
from cache.format.arrays import write_array
from cache.format.records import CHUNK, Group
from cache.storage.codec import Bytes, decompress
from cache.storage.local import LocalFiles
from cache.store import Store

PRINT, REPOSITORY = "0123456789abcdef" * 2, Path(__file__).resolve().parent.parent
SHAPES = ((96, 240, 48), (384, 2304, 384), (1280, 768, 192))  # width, rows of a video, of a window
CHUNK_ROWS = (64, 128, 256, 512)
WINDOWS = 200


def medians(works: Sequence[Callable[[], object]], passes: int) -> list[float]:
    """Return CPU seconds of each; they take turns, and the first turn does not count."""
    turns = []
    for _ in range(passes + 1):
        turn = []
        for work in works:
            began = time.process_time()
            work()
            turn.append(time.process_time() - began)
        turns.append(turn)
    return [statistics.median(column) for column in zip(*turns[1:], strict=True)]


def measure(rows: NDArray[np.float16], span: int, window: int, passes: int) -> dict[str, float]:
    """Write videos of `span` rows, and read random windows and everything."""
    count = len(rows) // span
    rows = rows[: count * span]
    frames = np.arange(2 * span)
    addresses = [
        Address(PRINT, "float16", f"{video:064x}", "forward", "video", frames, span)
        for video in range(count)
    ]
    rng = np.random.default_rng(0)
    places = [
        (int(video), int(rng.integers(span - window + 1)))
        for video in rng.integers(0, count, WINDOWS)
    ]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with Store.open(folder, "a") as store, store.writer(compact_bytes=2**40) as writer:
            for video, a in enumerate(addresses):
                writer.write(a, torch.from_numpy(rows[video * span : (video + 1) * span]))
        np.save(folder / "rows.npy", rows)
        mapped = np.load(folder / "rows.npy", mmap_mode="r")
        store = stack.enter_context(Store.open(folder))
        (table,) = store.index.tables.values()
        assert table.array is not None
        info, group = table.array.info, table.array.group
        chunks = -(-info.rows // info.chunk_rows)
        decoded = 0

        def count_bytes(frame: Bytes, out: Bytes, file: str) -> None:
            nonlocal decoded
            decoded += len(out)
            decompress(frame, out, file)

        def read() -> None:
            for video, start in places:
                store.read(addresses[video], start, start + window)

        with patch.object(arrays, "decompress", count_bytes):
            read()

        def copy() -> None:
            for video, start in places:
                first = video * span + start
                torch.from_numpy(np.array(mapped[first : first + window]))

        def write() -> None:
            write_array(LocalFiles(folder), "again", Group(*group), len(rows), pieces())

        def pieces() -> Any:
            for first in range(0, len(rows), span):
                yield rows[first : first + span].reshape(-1).view(np.uint8)

        works: list[Callable[[], object]] = [
            read,
            copy,
            lambda: store.read_many(addresses),
            write,
        ]
        if find_spec("train.data.in_memory") is not None:  # not in every checkout
            spans, source = hold_spans(store, addresses)
            assert torch.equal(source.read(spans[1], slice(5, 9)), store.read(addresses[1], 5, 9))

            def read_held() -> None:
                for video, start in places:
                    source.read(spans[video], slice(start, start + window))

            works.append(read_held)
        read_s, copy_s, whole_s, write_s, *held_s = medians(works, passes)
    return {
        "chunk rows": info.chunk_rows,
        "chunk bytes": info.chunk_rows * group.row_bytes,
        "decoded": decoded / (WINDOWS * window * group.row_bytes),
        "read": read_s / WINDOWS * 1e6,
        "copy": copy_s / WINDOWS * 1e6,
        "held": held_s[0] / WINDOWS * 1e6 if held_s else float("nan"),
        "whole": rows.nbytes / whole_s / 1e6,
        "write": rows.nbytes / write_s / 1e6,
        "size": sum(size for size, _ in info.shards) / rows.nbytes,
        "index": chunks * CHUNK.itemsize / rows.nbytes * 1e9,
    }


def hold_spans(store: Store, addresses: Sequence[Address]) -> Any:
    """Return spans and what holds their rows, as training holds them."""
    from extract.activations.stored import Cached
    from extract.sampling.spans import Span
    from extract.sampling.windows import Window
    from train.data.in_memory import hold

    spans = []
    for a in addresses:
        info = VideoInfo(a.video, a.video, 1, len(a.frames), 25.0)
        window = Window(a.frames, 0.0, 1.0, len(a.frames), len(a.frames), 0.0)
        spans.append(Span(info, Path(a.video), window, "forward", "video"))
    return spans, hold(Cached(store, "features", PRINT, "float16"), spans, quiet=True)


def measure_tests(passes: int) -> dict[str, float]:
    """Return µs that a test window of features takes to read, [96, 384], overlapping by half."""
    from extract.activations.stored import Cached
    from extract.settings.sampling import SamplingConfig
    from train.data import cached as cached_module
    from train.data.cached import CachedStreams, evaluation_spans, read_windows
    from train.data.in_memory import hold
    from train.data.items import VideoItem

    sampling = SamplingConfig(window_size=96, scale_factor=2, snippet_stride=2)
    infos = [VideoInfo(f"{n:064x}", f"{n}.mp4", 1, 800 + 50 * n, 25.0) for n in range(24)]
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    items = [
        VideoItem(i.name, Path(i.name), i.frames, i.frames / 25, 25.0, *none, (), identity=i)
        for i in infos
    ]
    windows = {i.name: cached_module.evaluation_windows(i, 0.5, sampling) for i in items}
    count = sum(map(len, windows.values()))
    names, works = [], list[Callable[[], object]]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for kind in ("window", "video"):
            of = evaluation_spans(items, 0.5, sampling, "forward", kind)
            url = Path(folder) / kind
            with Store.open(url, "a") as store, store.writer() as writer:
                place = Cached(store, "features", PRINT, "float16")
                for span in of:
                    writer.write(place.address(span), torch.randn(span.rows, 384))
            place = Cached(stack.enter_context(Store.open(url)), "features", PRINT, "float16")
            streams = CachedStreams((place,), tested_on=kind)
            sources = {"from the store": streams}
            if hasattr(streams, "held_tests"):  # not in every checkout
                sources["held"] = replace(streams, held_tests=(hold(place, of, quiet=True),))

            def read(streams: CachedStreams) -> None:
                for item in items:
                    for _ in read_windows(
                        item, windows[item.name], sampling, ("forward",), streams
                    ):
                        pass

            for source, streams in sources.items():
                names.append(f"{kind}, {source}")
                works.append(partial(read, streams))
        seconds = medians(works, passes)
    return {name: each / count * 1e6 for name, each in zip(names, seconds, strict=True)}


def make_rows(file: Path | None, width: int, nbytes: int) -> NDArray[np.float16]:
    """Return rows of a width: a file's numbers, repeated with varying factors, or random ones."""
    rng = np.random.default_rng(0)
    if file is None:
        numbers = rng.standard_normal(nbytes // 2, np.float32).astype(np.float16)
    else:
        loaded = np.load(file).reshape(-1)
        times = -(-nbytes // loaded.nbytes)
        factors = rng.uniform(0.9, 1.1, times)
        numbers = np.concatenate([(loaded * factor).astype(np.float16) for factor in factors])
    return numbers[: nbytes // 2 // width * width].reshape(-1, width)


def measure_here(file: Path | None, passes: int, every: bool) -> list[dict[str, float]]:
    """Return a line for every shape, or for every shape and number of rows in a chunk."""
    lines = []
    for width, span, window in SHAPES:
        rows = make_rows(file, width, 12_000_000)
        for chunk_rows in CHUNK_ROWS if every else (None,):
            about = {"width": width, "span": span, "window": window}
            if chunk_rows is None:
                lines.append(about | measure(rows, span, window, passes))
                continue
            with patch.object(arrays, "CHUNK_ROWS", chunk_rows):
                lines.append(about | measure(rows, span, window, passes))
    return lines


def print_table(label: str, lines: Sequence[dict[str, float]]) -> None:
    print(
        f"\n{label}\n\n"
        "| width | rows: video, window | chunk | decoded / wanted | a window | of a copy "
        "| held: a window | of a copy | everything | write | size | index per GB |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for line in lines:
        held = [f"{line['held']:.0f} µs", f"{line['held'] / line['copy']:.1f}"]
        print(
            f"| {line['width']:.0f} | {line['span']:.0f}, {line['window']:.0f} "
            f"| {line['chunk rows']:.0f} rows, {line['chunk bytes'] / 1024:,.0f} KiB "
            f"| {line['decoded']:.1f} | {line['read']:,.0f} µs | {line['read'] / line['copy']:.0f} "
            f"| {' | '.join(held if line['held'] == line['held'] else ['', ''])} "
            f"| {line['whole']:,.0f} MB/s | {line['write']:,.0f} MB/s | {line['size']:.1%} "
            f"| {line['index'] / 1e3:.0f} kB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--activations", type=Path, help="a .npy file [rows, …] of float16")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3, help="of the two checkouts")
    parser.add_argument("--tests", action="store_true", help="print JSON of reading test windows")
    parser.add_argument("--one", action="store_true", help="print JSON of the layout in use")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tests:
        print(json.dumps(measure_tests(args.passes)))
        return
    if args.one:
        print(json.dumps(measure_here(args.activations, args.passes, every=False)))
        return
    if args.before is not None:
        homes = {"before": args.before.resolve(), "after": REPOSITORY}
        found: dict[str, list[list[dict[str, float]]]] = {label: [] for label in homes}
        command = [sys.executable, __file__, "--one", f"--passes={args.passes}"]
        if args.activations is not None:
            command.append(f"--activations={args.activations.resolve()}")
        for _ in range(args.turns):
            for label, home in homes.items():
                environment = os.environ | {"PYTHONPATH": str(home)}
                done = subprocess.run(
                    command, env=environment, cwd=home, check=True, stdout=subprocess.PIPE
                )
                found[label].append(json.loads(done.stdout))
        for label, turns in found.items():
            lines = [
                {key: statistics.median(line[key] for line in same) for key in same[0]}
                for same in zip(*turns, strict=True)
            ]
            print_table(label, lines)
    print_table("by rows of a chunk", measure_here(args.activations, args.passes, every=True))


if __name__ == "__main__":
    main()
