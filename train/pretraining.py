"""Pretraining of the demo's tiny VideoMAE on endlessly generated clips."""

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from configs.atomic import atomic_path, write_text
from configs.progress import ProgressBar
from extract.backbone.backbone import Backbone
from extract.parallel.loader import make_loader
from extract.scenes import ACTIONS, action_map, random_scene, render_scene
from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.settings.units import CLIP_FRAMES, TUBELET
from train.errors import translate_worker_death

TINY = TrunkConfig(width=96, depth=6, heads=3, image_size=64, drop_path=0.0)
FRAME_RATES = (15.0, 18.0, 20.0, 24.0)
STRIDE = 2


class EndlessClips(IterableDataset[tuple[Tensor, Tensor]]):
    """Fresh clips: uint8 frames [3, 16, 64, 64] and multi-hot actions per token [8, 4, 4, K]."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        side = TINY.image_size
        while True:
            scene = random_scene(rng, 16.0, longest=4.0)
            step = STRIDE / rng.choice(FRAME_RATES)
            # Three clips of one scene: the timeline is dear, the pixels are cheap.
            for begin in rng.uniform(2.0, scene.duration - CLIP_FRAMES * step, 3):
                times = begin + step * np.arange(CLIP_FRAMES)
                frames = render_scene(scene, times, side, side, rng)
                middle = times.reshape(-1, TUBELET).mean(1)
                target = action_map(scene, middle, side // TINY.patch)
                yield torch.from_numpy(frames).permute(3, 0, 1, 2), torch.from_numpy(target)


def action_accuracy(logits: Tensor, target: Tensor) -> float:
    """Return the share of tubelets with exactly one action whose highest class is that action."""
    single = target.sum(-1) == 1
    right = logits.argmax(-1) == target.argmax(-1)
    return float(right[single].float().mean())


@translate_worker_death("--batch")
def pretrain(out: Path, steps: int, batch: int, lr: float, seed: int) -> None:
    """Train on fresh clips; write the trunk and its record into `out` from time to time."""
    command = (
        f"python train/pretrain.py --out {out.name} --steps {steps} "
        f"--batch {batch} --lr {lr} --seed {seed}"
    )
    torch.manual_seed(seed)
    backbone = Backbone(BackboneConfig(TINY, mode="full"))
    head = nn.Linear(TINY.width, len(ACTIONS))
    local_head = nn.Linear(TINY.width, len(ACTIONS))
    model = nn.ModuleList((backbone, head, local_head))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=0.05, cycle_momentum=False
    )
    clips = make_loader(EndlessClips(seed), batch, workers=1, prefetch_factor=8)
    began = time.monotonic()
    curve: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []
    bar = ProgressBar(zip(range(1, steps + 1), clips, strict=False), total=steps)
    for step, (frames, target) in bar:
        tokens = backbone(frames, stop=TINY.depth - 1)
        # Supervision of every token teaches where actions are; users read the mean over space.
        local = F.binary_cross_entropy_with_logits(local_head(tokens), target.flatten(2, 3))
        target = target.amax((2, 3))
        logits = head(tokens.mean(2))
        loss = F.binary_cross_entropy_with_logits(logits, target) + 4 * local
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append((loss.item(), action_accuracy(logits.detach(), target)))
        if step % 50 == 0 or step == steps:
            mean_loss, accuracy = np.mean(recent, axis=0)
            curve.append({"step": step, "loss": float(mean_loss), "accuracy": float(accuracy)})
            bar.set_postfix(loss=f"{mean_loss:.4f}", accuracy=f"{accuracy:.3f}")
            recent.clear()
            if step % 500 == 0 or step == steps:
                save_trunk(out, command, backbone, curve, time.monotonic() - began)


def save_trunk(
    out: Path,
    command: str,
    backbone: Backbone,
    curve: list[dict[str, float]],
    seconds: float,
) -> None:
    """Write the trunk and its training record, each whole or not at all."""
    with atomic_path(out) as aside:
        save_file({k: v.half() for k, v in backbone.state_dict().items()}, aside)
    record = {
        "command": command,
        "seconds": round(seconds),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}",
        "torch": torch.__version__,
        "objective": "binary cross-entropy of the actions of every token and every tubelet",
        "accuracy": "tubelets with exactly one action, fresh clips",
        "curve": curve,
    }
    write_text(out.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
