"""Measure on a GPU all that is predicted of one, in some 20 minutes.

    python -m benchmarks.gpu --out benchmarks/results/NAME.json
    python -m benchmarks.gpu --small --device cpu --out FILE.json      # only tries the script

Writes a JSON file, and a Markdown table of each part beside it, after every part. A part that fails
is recorded with its error, and the others go on; what a machine cannot measure is a row that says
why it was skipped. Inputs are noise that is on the device already; the real loop and extraction by
stages decode videos that are made for them. Where there are two GPUs, two processes train on them.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import gpu_heads, gpu_parts
from benchmarks.gpu_checkpoints import time_checkpoints
from benchmarks.gpu_loop import compare_with_golden, time_real_loop, time_stages
from benchmarks.gpu_parts import Plan, Row
from benchmarks.gpu_ranks import compare_ranks
from benchmarks.gpu_steps import describe_machine
from configs.atomic import write_text

PARTS = {
    "golden numbers": compare_with_golden,
    **gpu_parts.PARTS,
    **gpu_heads.PARTS,
    "extraction by stages": time_stages,
    "the real loop": time_real_loop,
    "checkpoints": time_checkpoints,
    "two processes": compare_ranks,
}


def run_part(name: str, plan: Plan) -> Row:
    """Return a part's rows, those before a failure too, and what failed."""
    began, rows, failed = time.monotonic(), list[Row](), None
    try:
        for row in PARTS[name](plan):
            rows.append(row)
    except Exception as error:  # whatever it is, the other parts still count
        failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    gc.collect()
    seconds = round(time.monotonic() - began, 1)
    return {"part": name, "seconds": seconds, "failed": failed, "rows": rows}


def format_part(part: Row) -> str:
    """Return a part as a Markdown table below its name."""
    lines = [f"## {part['part']}, {part['seconds']} s", ""]
    names = list(dict.fromkeys(name for row in part["rows"] for name in row))
    if names:
        lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in part["rows"]:
        cells = (format_cell(row.get(name)) for name in names)
        lines.append(f"| {' | '.join(cells)} |")
    if part["failed"]:
        lines += ["", f"failed: {part['failed']}"]
    return "\n".join(lines) + "\n"


def format_cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU manages")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use; --small --device cpu only tries the script")
    plan = Plan(args.device, args.small)
    where, parts = describe_machine(args.device, plan.repeats), list[Row]()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        parts.append(run_part(name, plan))
        about = f"# {where['device']}, driver {where['driver']}, torch {where['torch']}\n\n"
        about += f"{where['date']}; {where['matrix_flops_per_s'] / 1e12:.3g} TFLOP/s in bf16\n\n"
        write_text(args.out.with_suffix(".md"), about + "\n".join(map(format_part, parts)))
        write_text(args.out, json.dumps(where | {"parts": parts}, indent=1) + "\n")
        print(format_part(parts[-1]), flush=True)


if __name__ == "__main__":
    main()
