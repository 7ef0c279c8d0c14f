"""A detector as others receive it: a folder with its weights, its settings and a model card."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.atomic import write_text
from configs.loader import CONFIGS, dump
from extract.checkpoints.hub import DETECTOR_FILE, is_on_hub
from extract.settings.sampling import SamplingConfig
from train.config import Experiment
from train.engine.checkpoint import Checkpoint, save_checkpoint

CARD = "README.md"
SHOWN_CLASSES = 200
USE = """With Palindrome installed (in a checkout both names do):

```python
from palindrome.train.detector import Detector

detector = Detector.from_pretrained("{where}")
for found in detector.detect("video.mp4")[:5]:
    print(found)
```

```bash
palindrome detect VIDEO.mp4 --checkpoint {quoted}
python evaluate/detect.py VIDEO.mp4 --checkpoint {quoted}
```
"""


def write_folder(
    folder: Path, content: Checkpoint[Experiment], metrics: Path | None, where: str
) -> None:
    """Write a detector's weights, its settings and its model card.

    Args:
        metrics: metrics.json of an evaluation.
        where: what the card says to load it from.

    Raises:
        ValueError: the metrics cannot be read.
        OSError: something cannot be written.
    """
    scores = _read_scores(metrics) if metrics else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / DETECTOR_FILE, content)
    write_text(folder / "config.yaml", dump(content.config))
    write_text(folder / CARD, model_card(content, scores, where))


def model_card(content: Checkpoint[Experiment], scores: Mapping[str, float], where: str) -> str:
    """Return a model card: metadata that the Hub reads, and text for people."""
    config = content.config
    licence, why = backbone_licence(config.backbone.weights)
    data = Path(config.data.annotations).stem
    about: dict[str, Any] = {
        "library_name": "palindrome",
        "license": licence,
        **({"license_name": "see-the-backbone"} if licence == "other" else {}),
        "tags": ["temporal-action-detection", "temporal-action-localization", "video"],
    }
    if scores:
        results = [{"type": name, "value": value} for name, value in scores.items()]
        task = {"type": "temporal-action-detection", "name": "Temporal action detection"}
        dataset = {"type": data, "name": data}
        of_one = {"task": task, "dataset": dataset, "metrics": results}
        about["model-index"] = [{"name": Path(where).name, "results": [of_one]}]
    more = len(content.classes) - SHOWN_CLASSES
    classes = ", ".join(content.classes[:SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")
    window = _describe_window(config.sampling)
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n",
            f"# {Path(where).name}\n",
            "A detector of actions in untrimmed video, made with Palindrome. It gives each",
            f"action's class, start and end, and reads videos {' and '.join(config.directions)}.\n",
            f"- Classes ({len(content.classes)}): {classes}",
            f"- Trained on `{data}`, subset `{config.data.train_subset}`",
            f"- Input: {window} at {config.pixels.size} × {config.pixels.size}",
            f"- Backbone: {config.backbone.network}, mode {config.backbone.mode}, weights "
            f"{config.backbone.weights or 'none that were pretrained'}",
            f"- Licence: {why}\n",
            *([f"## Scores\n\n| measure | value |\n|---|---|\n{table}\n"] if scores else []),
            f"## Use\n\n{USE.format(where=where, quoted=shlex.quote(where))}",
        ]
    )


def _describe_window(sampling: SamplingConfig) -> str:
    if sampling.method == "resize":
        return "whole videos"
    if sampling.fps is None:
        return f"windows of {sampling.window_size * sampling.snippet_stride} frames"
    return f"windows of {sampling.samples / sampling.fps:.3g} s"


def backbone_licence(weights: str | None) -> tuple[str, str]:
    """Return the licence that pretrained weights leave to what is built on them, and why.

    The identifier is the Hub's; `other` where only the user can know.
    """
    if weights and not is_on_hub(weights) and Path(weights).parts[:1] == (CONFIGS.name,):
        return "apache-2.0", "Apache-2.0, as the pretrained weights, which come with Palindrome"
    if weights and "videomae" in weights.lower():
        return "cc-by-nc-4.0", "CC BY-NC 4.0, as the pretrained VideoMAE weights it is built on"
    return "other", "that of the weights it is built on, which this file does not know"


def _read_scores(path: Path) -> dict[str, float]:
    """Return the numbers of a metrics.json, without those of single streams."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in content.items() if isinstance(value, float)}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            f"metrics: {path} is not a metrics.json of evaluate/run.py ({error})"
        ) from error
