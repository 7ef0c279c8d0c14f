"""Pretrain the demo's tiny VideoMAE on endlessly generated clips.

    python train/pretrain.py --out configs/e2e/demo/videomae_tiny.safetensors

The published VideoMAE models come from masked pretraining and fine-tuning on Kinetics; this
stand-in learns to name the actions of every tubelet in synthetic clips that are never repeated.
Beside the weights it writes a record (`.json`) of its settings, losses and accuracies.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs import cli
from configs.options import ScriptParser


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args, _ = parser.parse()
    from train.pretraining import pretrain

    pretrain(args.out, args.steps, args.batch, args.lr, args.seed)


if __name__ == "__main__":
    cli.run(main)
