"""Options that several scripts of this stage have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.options import ScriptParser


def add_threshold(parser: ScriptParser, meaning: str) -> None:
    """Add --threshold, a score; see `check_threshold`."""
    help_text = f"{meaning} (default: %(default)s)"
    parser.add_argument("--threshold", type=float, default=0.3, help=help_text)


def check_threshold(parser: ScriptParser, threshold: float) -> None:
    """End the script if --threshold is not a score."""
    if not 0 <= threshold <= 1:
        parser.error("--threshold is a score from 0 to 1")


def add_tool_files(parser: ScriptParser) -> None:
    """Add where `evaluate.files.annotation_tools.ToolFiles` go."""
    parser.add_argument(
        "--label_studio", type=Path, metavar="FILE", help="tasks with predictions, for import"
    )
    parser.add_argument("--elan", type=Path, metavar="FOLDER", help="an .eaf file for each video")
    parser.add_argument("--via", type=Path, metavar="FILE", help="a project of VIA 3")


def check_detections(
    parser: ScriptParser,
    checkpoint: Path | None,
    predictions: Sequence[Path] | None,
    config: Path | None,
    truth: Sequence[Any],
    overrides: Sequence[str],
) -> None:
    """End the script if it is not clear what is scored, or on what.

    Args:
        checkpoint, predictions, config: options of these names.
        truth: --annotations and --subset.
        overrides: settings, which need a config to change.
    """
    if bool(checkpoint) == bool(predictions):
        parser.error("give either --checkpoint or --predictions")
    if checkpoint or config:
        return
    if not all(truth):
        parser.error("--predictions needs --annotations and --subset, or --config")
    if overrides:
        parser.error(f"without --config there is nothing to set: {' '.join(overrides)}")
