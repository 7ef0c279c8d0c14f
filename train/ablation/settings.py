"""The settings of a grid's rows, as their scripts read them: checked before hours of runs."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from configs.loader import dump, load, parse
from configs.messages import truncated
from train.ablation.grid import Grid, Run, Setting, override_words
from train.config import Experiment, fused_settings

END_TO_END, HEADS, SOUP = "train/e2e.py", "train/heads.py", "train/soup.py"
COMMAND_LINE = "command line: "  # where a script finds a row's overrides


def check_settings(grid: Grid) -> None:
    """Check the settings of all rows, but for those of scripts that are not ours.

    Raises:
        ValueError: a script would refuse its row's settings; names all such rows. What builds on
            one of them is judged as if that had no overrides.
    """
    resolved: dict[str, Experiment] = {}
    wrong = defaultdict[str, list[str]](list)  # rows by what is wrong with them
    for run in grid.runs():
        if run.seed != grid.seeds[0]:
            continue
        streams = [each.row for each in grid.inputs(run).get("--checkpoint", ())]
        if not set(streams) <= resolved.keys():
            continue
        under = [resolved[each] for each in streams]
        settings = None
        try:
            settings = _resolve(grid, run, under, grid.settings(run))
        except ValueError as error:
            wrong[str(error).removeprefix(COMMAND_LINE)].append(f"rows.{run.row}")
            with suppress(ValueError):
                settings = _resolve(grid, run, under, {})
        if settings is not None:
            resolved[run.row] = settings
    if wrong:
        count = sum(map(len, wrong.values()))
        rows = "a row" if count == 1 else f"{count} rows"
        lines = truncated([f"{', '.join(names)}: {what}" for what, names in wrong.items()])
        raise ValueError(
            "\n  ".join([f"settings of {rows} are wrong, and nothing was begun:", *lines])
        )


def _resolve(
    grid: Grid, run: Run, streams: Sequence[Experiment], overrides: dict[str, Setting]
) -> Experiment | None:
    """Return the experiment of a run, as its script makes it; None of other scripts.

    Args:
        streams: experiments of the checkpoints that it builds on.
    """
    row = grid.rows[run.row]
    words = [f"--out={grid.folder(run)}", f"--cache.url={grid.cache}"]
    words += override_words(overrides)
    if row.script in (END_TO_END, HEADS) and row.config and not streams:
        return load(Experiment, row.config, words)
    if row.script == HEADS and streams:
        first = fused_settings(streams)
        if row.config:
            return load(Experiment, row.config, words, first)
        return parse(Experiment, dump(first), words)
    if row.script == SOUP and streams:
        return parse(Experiment, dump(streams[0]), words)
    return None
