"""Train a network to recognise actions in trimmed clips, from scratch or from a checkpoint.

    accelerate launch train/recognise.py --config configs/recognition/demo.yaml [--resume]
    accelerate launch train/recognise.py --config FILE --data.annotations FOLDER \\
        --network.weights CHECKPOINT --training.lr 1e-3 --out runs/mine

Any setting of the config can be overridden by its dotted name.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs import cli
from configs.loader import load
from configs.options import ScriptParser
from train.recognition.config import Recognition

AFTER_INTERRUPT = "--resume continues from last.pt"


def main() -> None:
    parser = ScriptParser(__doc__, Recognition)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--resume", action="store_true", help="continue from last.pt, if any")
    args, overrides = parser.parse()
    train_recogniser(load(Recognition, args.config, overrides), args.resume)


def train_recogniser(config: Recognition, resume: bool) -> None:
    """Train as the config says; write checkpoints, metrics and a report into `config.out`."""
    from train.engine.loop import TrainingRun
    from train.engine.session import Session
    from train.recognition.recogniser import Recogniser
    from train.recognition.setup import (
        check_not_sharded,
        load_training_clips,
        write_recogniser_record,
    )
    from train.recognition.training import RecognitionTask

    with Session(config, resume) as session:
        accelerator = session.accelerator
        check_not_sharded(accelerator)
        data = load_training_clips(config.data, accelerator)
        recogniser = Recogniser(config, data.clips.sets)
        taken = ""
        if config.network.weights and not session.begun:
            taken = recogniser.load_weights(config.network.weights)
        session.claim(recogniser.network, keeps_best=data.validation is not None)
        validation = data.validation
        task = RecognitionTask(recogniser, data.training, validation, accelerator)
        run = TrainingRun(task, accelerator, session.begun, session.watch)
        with session.report() as notes:
            if accelerator.is_main_process:
                write_recogniser_record(session.out, recogniser, data, taken)
                notes.about["epochs"] = run.epochs
            run.train()


if __name__ == "__main__":
    cli.run(main, AFTER_INTERRUPT)
