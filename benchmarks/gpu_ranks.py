"""The part of `benchmarks.gpu` on two processes: their gradients, and how a killed one ends both.

    python -m torch.distributed.run --standalone --nproc_per_node=2 --module benchmarks.gpu_ranks …

is what `compare_ranks` starts: as in a run, torchrun starts the processes and watches over them.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import HOME
from benchmarks.gpu_parts import Plan, Row, relative_error
from benchmarks.gpu_steps import build_run, noise_batch, settings
from configs.atomic import write_text

PROCESSES, KILLED = 2, 1
LONGEST_S = 300  # until the processes have learned, and until they have ended
GRADIENTS = "gradients.pt"
# Softmax does not feel a constant added to all scores: these gradients are rounding alone.
NO_GRADIENT = ".attention.key.norm.bias", ".attention.key.linear.bias"


def compare_ranks(plan: Plan) -> Iterator[Row]:
    """Yield the gradients of two processes beside one's, and how long one of them outlives a kill.

    Of all weights the one counts whose gradient has the largest relative error, in float32.
    """
    if plan.device == "cuda" and torch.cuda.device_count() < PROCESSES:
        yield {"skipped": "there is one GPU"}
        return
    alone = learn(plan, 0, 1)[1]
    with tempfile.TemporaryDirectory() as name, open(Path(name) / "log", "w+") as log:
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc_per_node={PROCESSES}", "--module", "benchmarks.gpu_ranks"),
                *("--device", plan.device, "--out", name, *["--small"][: plan.small]),
            ],
            cwd=HOME,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            processes = wait_for_processes(launcher, Path(name))
            together: dict[str, Tensor] = torch.load(Path(name) / GRADIENTS, weights_only=True)
            os.kill(processes[KILLED], signal.SIGKILL)
            began = time.perf_counter()
            launcher.wait(LONGEST_S)  # it is the last one to end
            ended = time.perf_counter()
            errors = {name: relative_error(together[name], each) for name, each in alone.items()}
            worst = max(errors, key=lambda name: errors[name])
            yield {
                "backend": "gloo" if plan.device == "cpu" else "nccl",
                "largest_error": errors[worst],
                "of": worst,
                "all_ended_after_s": ended - began,
            }
        finally:
            launcher.terminate()  # which ends the others
            launcher.wait()


def wait_for_processes(launcher: "subprocess.Popen[bytes]", folder: Path) -> Sequence[int]:
    """Return the numbers of the processes by rank, when all have learned.

    Raises:
        RuntimeError: they have ended, or take too long.
    """
    files = [folder / str(rank) for rank in range(PROCESSES)]
    began = time.monotonic()
    while not all(file.exists() for file in files):
        if launcher.poll() is not None or time.monotonic() - began > LONGEST_S:
            said = (folder / "log").read_text()
            raise RuntimeError(f"two processes have not learned: {said[-200:]}")
        time.sleep(0.1)
    return [int(file.read_text()) for file in files]


def learn(plan: Plan, rank: int, processes: int) -> tuple[torch.device, dict[str, Tensor]]:
    """Make an update with a process's share of two windows.

    Returns:
        The device, and AdamW's average of the gradients by name of the weight, on the host.
    """
    (size,) = plan.sizes("s")
    with tempfile.TemporaryDirectory() as folder:
        config = settings(size, PROCESSES, "selective", folder, "fp32")
    trunk = replace(config.backbone.trunk, drop_path=0.0)
    config = replace(
        config,
        # What each process draws at random cannot be equal, and clipping would hide a factor.
        backbone=replace(config.backbone, trunk=trunk),
        head=replace(config.head, drop_path=0.0),
        training=replace(config.training, clip_norm=1e9),
    )
    torch.manual_seed(0)
    run = build_run(config, plan.device, compiled=False)
    torch.manual_seed(0)
    batch, mine = noise_batch(config, "cpu"), slice(rank, None, processes)
    weights = {n: weight for n, weight in run.model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():  # zeros would hide the gradients of those before them
            weight.add_(0.02 * torch.randn(weight.shape).to(weight.device))
    share = replace(
        batch.each(lambda tensor: tensor[mine]),
        videos=batch.videos[mine],
        segments=tuple(of[mine] for of in batch.segments),
        labels=batch.labels[mine],
    )
    run.update(0, [share.to(run.accelerator.device)])
    moments = {name: run.optimizer.state[weight]["exp_avg"] for name, weight in weights.items()}
    of_windows = {n: m.cpu() for n, m in moments.items() if not n.endswith(NO_GRADIENT)}
    return run.accelerator.device, of_windows


def main() -> None:
    """Learn as one of the processes, and then wait for the others again and again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rank = int(os.environ["RANK"])
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device, moments = learn(Plan(args.device, args.small), rank, PROCESSES)
    if rank == 0:
        torch.save(moments, args.out / GRADIENTS)
    write_text(args.out / str(rank), str(os.getpid()))
    while True:
        one = torch.ones(1, device=device)
        torch.distributed.all_reduce(one)
        one.item()  # the host waits for the device
        time.sleep(0.05)


if __name__ == "__main__":
    main()
