"""The part of `benchmarks.gpu` on checkpoints: their size, how long training stops, and resuming.

    accelerate launch --config_file configs/accelerate/fsdp.yaml --num_processes 2 \\
        benchmarks/gpu_checkpoints.py --size h --out FILE.json

is what `time_checkpoints` starts where there are two GPUs, each of which then holds half of all
weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __package__ is None:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.cases import HOME
from benchmarks.gpu_parts import Plan, Row
from benchmarks.gpu_steps import build_run, noise_batch, settings, synchronise
from benchmarks.sizes import FILES
from configs.atomic import write_text
from extract.checkpoints.beside import SHARED_FILES

PROCESSES = 2
LONGEST_S = 300  # that sharded processes may take
LAST = "last.pt"


def time_checkpoints(plan: Plan) -> Iterator[Row]:
    """Yield what checkpoints of one process take, and of two that share its weights (FSDP)."""
    sizes = plan.sizes("s", "h")
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            row: Row = {"size": size, "processes": 1}
            yield row | measure_checkpoints(plan.device, size, Path(name))
    if plan.device == "cpu":
        yield {"processes": PROCESSES, "skipped": "sharding is for GPUs"}
    elif torch.cuda.device_count() < PROCESSES:
        yield {"processes": PROCESSES, "skipped": "there is one GPU"}
    else:
        for size in sizes:
            yield {"size": size, "processes": PROCESSES} | launch_sharded(size)


def launch_sharded(size: str) -> Row:
    """Return what sharded processes measured.

    Raises:
        RuntimeError: they failed.
    """
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "row.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "accelerate.commands.launch"),
                *("--config_file", "configs/accelerate/fsdp.yaml"),
                *("--num_processes", f"{PROCESSES}", "benchmarks/gpu_checkpoints.py"),
                *("--size", size, "--out", file),
            ],
            cwd=HOME,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
        if done.returncode:
            raise RuntimeError(f"sharded processes failed: {done.stderr[-200:]}")
        row: Row = json.loads(file.read_text())
        return row


def measure_checkpoints(device: str, size: str, folder: Path) -> Row:
    """Return the seconds and bytes of two checkpoints, and the seconds of building a resumed run.

    The first one comes with a file of what never changes. Training stands still for `stop_s`, the
    file is there after `written_s`; `whole_s` is what the end of a run takes, when everything comes
    into one file. All processes must call this.
    """
    config, row = settings(size, PROCESSES, "full", str(folder)), Row()
    run, batch = build_run(config, device, compiled=False), noise_batch(config, device)
    for number, which in enumerate(("first_", "")):
        run.update(number, [batch])  # after it the optimizer has a state to be written
        synchronise(device)
        began = time.perf_counter()
        run.save(LAST)
        row[f"{which}stop_s"] = time.perf_counter() - began
        run.writer.wait()
        row[f"{which}written_s"] = time.perf_counter() - began
        run.accelerator.wait_for_everyone()
    row["last_bytes"] = (folder / LAST).stat().st_size
    row["beside_bytes"] = sum(file.stat().st_size for file in folder.glob(SHARED_FILES))
    run.accelerator.wait_for_everyone()
    began = time.perf_counter()
    if run.accelerator.is_main_process:
        run.writer.finish(folder)
    row["whole_s"] = time.perf_counter() - began
    run.accelerator.wait_for_everyone()
    row["whole_bytes"] = (folder / LAST).stat().st_size
    del run
    began = time.perf_counter()
    build_run(config, device, compiled=False, resume=True)
    synchronise(device)
    return row | {"resume_s": time.perf_counter() - began}


def main() -> None:
    """Measure as one of the processes; the first one writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=[*FILES, "tiny"], required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    row = measure_checkpoints(args.device, args.size, args.out.parent)
    if int(os.environ["RANK"]) == 0:
        write_text(args.out, json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
