"""Measure the index of stores of videos with uneven frame times: its size, and what opening takes.

    python -m benchmarks.index                       # minutes; 2 GB of the disk
    python -m benchmarks.index --before CHECKOUT     # the same, and with code of before

Stores of format version 1, which repeats the frame times in every table, are opened by this code
and by that of CHECKOUT; those of the present version by this code. Each is opened by a process of
its own. Seconds are of the CPU, so that what else runs on the machine counts less.
"""

import argparse
import base64
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from cache.address import Address, FingerprintInfo, VideoInfo
from cache.format.arrays import choose_layout
from cache.format.descriptions import encode_description, write_descriptions
from cache.format.records import (
    CHUNK,
    FOOTER,
    MAGIC,
    RECORD,
    ArrayInfo,
    Description,
    Group,
    IndexTable,
    compute_digest,
    encode_table,
)
from cache.storage.local import LocalFiles
from cache.store import FORMAT_1, MARKER, Store
from configs.messages import pad_columns

# Videos, frames of one, fingerprints, directions: THUMOS-14, ActivityNet in part, a large one.
SIZES = [(413, 6590, 20, 1), (2000, 3050, 20, 1), (10_000, 3050, 20, 2)]
SPANS_A_TABLE, WIDTH = 900, 384
TIMES_BYTES = 2 * 10**9  # of version 1, at most: opening takes nearly twice that in memory

OPEN = """
import json, sys, time
from cache.store import Store
def memory(which):
    return int(open("/proc/self/status").read().partition(which)[2].split()[0]) * 1024
before, began = memory("VmRSS:"), time.process_time()
store = Store.open(sys.argv[1])
opened, peak = time.process_time() - began, memory("VmHWM:")
assert len(store.index.records) == int(sys.argv[2])
began = time.process_time()
assert len(store.videos_by_name) == int(sys.argv[3])
named = time.process_time() - began
print(json.dumps({"open": opened, "names": named, "bytes": max(peak, memory("VmHWM:")) - before}))
"""


def video(number: int, frames: int) -> VideoInfo:
    """Return a video whose frames come a few milliseconds early or late."""
    jitter = np.random.default_rng(number).integers(-300, 300, frames + 1)
    times = (np.arange(frames + 1) * 3003 + jitter) * (1 / 90000)
    return VideoInfo(f"{number:064x}", f"video_{number:06}.mp4", 10**8, frames, 29.97, times)


def write_store(
    folder: Path, videos: list[VideoInfo], prints: int, directions: int, old: bool
) -> None:
    """Write the indexes of a store as compaction writes them, without the arrays behind them."""
    Store.open(folder, "a").close()
    if old:
        (folder / MARKER).write_bytes(FORMAT_1)
    files = LocalFiles(folder)
    known: dict[str, Description] = {}
    if not old:
        described = [encode_description(Description(1, v)) for v in videos]
        write_descriptions(files, described)
        known = {each.subject: each for each, _, _ in described}
    encoded = {v.digest: embedded_line(v) for v in videos} if old else {}
    for number in range(prints):
        about = FingerprintInfo(f"{number + 1:032x}", "features", "last.pt")
        if not old:
            described = [encode_description(Description(1, about))]
            write_descriptions(files, described)
            known[about.fingerprint] = described[0].description
        part = folder / "parts" / f"{number:06}"
        part.mkdir(parents=True)
        together = SPANS_A_TABLE // directions
        for table, first in enumerate(range(0, len(videos), together)):
            some = videos[first : first + together]
            content = encode(about, some, directions, known)
            if old:
                lines = [json.dumps([1, "fingerprint", about.to_dict()])]
                content = with_embedded(content, lines + [encoded[v.digest] for v in some])
            (part / f"a{table + 1:06}.idx").write_bytes(content)


def encode(
    about: FingerprintInfo,
    videos: list[VideoInfo],
    directions: int,
    descriptions: dict[str, Description],
) -> bytes:
    """Return an index of the videos' activations of one fingerprint."""
    records = np.zeros(len(videos) * directions, RECORD)
    rows = videos[0].frames // 2
    for number, row in enumerate(records):
        which, direction = divmod(number, directions)
        way, frames = ("forward", "reversed")[direction], np.arange(16)
        a = Address(about.fingerprint, "float16", videos[which].digest, way, "video", frames, rows)
        row["hi"], row["lo"] = np.frombuffer(a.key, "<u8")
        row["video"], row["direction"] = which, direction
    records["place"] = np.arange(len(records)) * rows
    records["rows"] = records["total"] = rows
    total = len(records) * rows
    chunk_rows, shard_rows = choose_layout(total, 2 * WIDTH) if descriptions else (1365, 64 * 1365)
    chunks = np.zeros(-(-total // chunk_rows), CHUNK)
    shards = [(10**7, 1)] * -(-total // shard_rows)
    info = ArrayInfo(total, chunk_rows, shard_rows, "0" * 32, shards, chunks)
    group = Group(about.fingerprint, "float16", (WIDTH,))
    table = IndexTable(records, [group], [v.digest for v in videos], [], info)
    table.described = [[descriptions[who].hash] for who in table.subjects if who in descriptions]
    return encode_table(table)


def embedded_line(info: VideoInfo) -> str:
    """Return what version 1 wrote of a video."""
    assert info.times_s is not None
    times = base64.b64encode(np.ascontiguousarray(info.times_s, "<f8").tobytes()).decode()
    return json.dumps([1, "video", info.to_dict() | {"times_s": times}])


def with_embedded(content: bytes, lines: list[str]) -> bytes:
    """Return a table as version 1 wrote it."""
    body = content[: -FOOTER.size]
    end = 8 + int.from_bytes(body[:8], "little")
    header = body[8:end].decode().replace('"told": []', f'"told": [{", ".join(lines)}]')
    body = len(header).to_bytes(8, "little") + header.encode() + body[end:]
    return body + FOOTER.pack(0, len(body), compute_digest(body), MAGIC)


def measure(folder: Path, code: Path, spans: int, videos: int, passes: int) -> dict[str, float]:
    """Open a store with some code, in processes of its own; return medians."""
    found = []
    for _ in range(passes):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(folder), str(spans), str(videos)],
            env={**os.environ, "PYTHONPATH": str(code)},
            cwd=code,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found.append(json.loads(done.stdout))
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


class Now:
    """When it arrives in another process: its CPU seconds, and its memory that is not shared."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return now, ()


def now() -> tuple[float, int]:
    status = Path("/proc/self/status").read_text()
    return time.process_time(), int(status.partition("RssAnon:")[2].split()[0]) * 1024


def answer(before: tuple[float, int], store: Store, after: Any, to: Connection) -> None:
    used = now()[1] - before[1]
    to.send({"open": after[0] - before[0], "bytes": used, "records": len(store.index.records)})


def measure_worker(folder: Path) -> dict[str, float]:
    """Hand a store to a process as to a loader's worker."""
    context = multiprocessing.get_context("spawn")
    with Store.open(folder) as store:
        ours, theirs = context.Pipe()
        process = context.Process(target=answer, args=(Now(), store, Now(), theirs))
        process.start()
        found: dict[str, float] = ours.recv()
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--before", type=Path, help="checkout of the code to compare with")
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    rows = [("videos", "format", "code", "index", "open", "memory", "all names", "a worker")]
    rows.append(("---",) * len(rows[0]))
    for videos, frames, prints, directions in SIZES:
        infos = [video(number, frames) for number in range(videos)]
        label = f"{videos:,} × {prints}" + (f" × {directions}" if directions > 1 else "")
        for version in (1, 3):
            if version == 1 and videos * prints * frames * 11 > TIMES_BYTES:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                with patch("os.fsync"):  # nothing has to outlive the machine
                    write_store(folder, infos, prints, directions, old=version == 1)
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                codes = {"after": here}
                if version == 1 and args.before:
                    codes = {"before": args.before.resolve(), **codes}
                for code, path in codes.items():
                    spans = videos * prints * directions
                    found = measure(folder, path, spans, videos, args.passes)
                    worker = None if code == "before" else measure_worker(folder)
                    rows.append(
                        (
                            *(label, str(version), code, f"{size / 1e6:,.0f} MB"),
                            *(f"{found['open']:.2f} s", f"{found['bytes'] / 1e6:,.0f} MB"),
                            f"{found['names']:.2f} s",
                            "as above"
                            if worker is None
                            else f"{worker['open']:.2f} s, {worker['bytes'] / 1e6:,.1f} MB",
                        )
                    )
                    print(f"{rows[-1]}", file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in pad_columns(rows)))


if __name__ == "__main__":
    main()
