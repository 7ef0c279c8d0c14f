"""Head first, then end to end: how many end-to-end steps does the two-stage recipe save?

    OMP_NUM_THREADS=1 python -m benchmarks.two_stage [--seeds 0 1 2] [--epochs 5 10 20]

On the demo, with each seed, by the documented commands: a head trained on the cached activations of
the pretrained backbone; then end-to-end trainings of several lengths, each with a schedule of its
own, from scratch and from that head, with equal settings. Each is scored on the test videos at its
end. The curve goes to OUT/two_stage.png, the table to OUT/results.md. Existing runs are not
made again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from configs.atomic import write_text

CONFIG = "configs/e2e/demo/forward.yaml"
WAYS = {"scratch": "end to end from scratch", "warm": "head first, then end to end"}

Scores = dict[str, dict[int, list[float]]]
"""Per way and end-to-end steps the mAP of every seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--out", type=Path, default=Path("runs/two_stage"))
    args = parser.parse_args()
    run_script("extract/demo.py", "--out", "data/demo")
    scores: Scores = {way: {} for way in WAYS}
    heads = []
    for seed in args.seeds:
        head = args.out / f"head_{seed}"
        train_and_validate("train/heads.py", head, seed, 40, "--cache", str(args.out / "cache"))
        heads.append(last_score(head)[1])
        for epochs in args.epochs:
            for way in WAYS:
                run = args.out / f"{way}_{epochs}_{seed}"
                start = ["--init-from", str(head / "last.pt")] if way == "warm" else []
                train_and_validate("train/e2e.py", run, seed, epochs, *start)
                step, found = last_score(run)
                scores[way].setdefault(step, []).append(found)
    report = scores_by_steps(scores, heads)
    write_text(args.out / "results.md", report)
    draw_curve(scores, statistics.mean(heads), args.out / "two_stage.png")
    print(report)


def run_script(*command: str) -> None:
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, *command], check=True)


def train_and_validate(script: str, run: Path, seed: int, epochs: int, *options: str) -> None:
    """Train into a folder, or resume there; score the test videos at the end."""
    settings = ["--config", CONFIG, "--out", str(run), "--resume", "--training.seed", str(seed)]
    lengths = {"epochs": epochs, "stop_epoch": epochs, "warmup_epochs": max(1, epochs // 10)}
    lengths |= {"validate_every": epochs, "validate_from": epochs}
    for name, value in lengths.items():
        settings += [f"--training.{name}", str(value)]
    run_script(script, *settings, "--data.validation_subset", "test", *options)


def last_score(run: Path) -> tuple[int, float]:
    """Return a run's last step and the mAP there."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "validation" in line][-1]
    return last["step"], last["validation"]["average_mAP"]


def scores_by_steps(scores: Scores, heads: list[float]) -> str:
    """Return mean and deviation over seeds by length and way."""
    lines = ["| end-to-end steps | " + " | ".join(WAYS.values()) + " |", "|---|---|---|"]
    for step in scores["scratch"]:
        lines.append(
            f"| {step} | {' | '.join(mean_and_deviation(scores[way][step]) for way in WAYS)} |"
        )
    lines.append(f"\nThe heads alone, on the pretrained backbone: {mean_and_deviation(heads)}.")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def draw_curve(scores: Scores, head: float, path: Path) -> None:
    """Draw the mean over seeds of both ways, every seed as a dot, and the heads alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for (way, name), colour, mark in zip(WAYS.items(), ("C0", "C1"), ("o--", "s-"), strict=True):
        of = scores[way]
        axes.plot(list(of), [statistics.mean(each) for each in of.values()], mark, color=colour)
        axes.lines[-1].set_label(name)
        for step, each in of.items():
            axes.scatter([step] * len(each), each, color=colour, alpha=0.4, s=12)
    axes.axhline(head, color="0.5", linestyle=":", label="the head alone (no end-to-end step)")
    axes.set_xscale("log", base=2)
    steps = list(scores["scratch"])
    axes.set_xticks(steps, labels=[str(step) for step in steps])
    axes.set(xlabel="end-to-end steps of the whole run", ylabel="mAP, mean of tIoU 0.3 … 0.7")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
