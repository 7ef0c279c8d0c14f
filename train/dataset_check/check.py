"""All checks of an experiment's data, made at once."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from configs.messages import format_count
from evaluate.reports.figures import draw_dataset
from train.config import Experiment
from train.dataset_check import annotations, files, lengths
from train.dataset_check.findings import (
    Finding,
    count_by_severity,
    exit_code,
    findings_table,
    findings_to_dict,
)
from train.dataset_check.lengths import Suggestion, suggest_windows
from train.dataset_check.survey import Survey, subsets, survey_dataset
from train.dataset_check.updates import check_updates, planned_updates
from train.modeling.points import regression_ranges

CHECKS = (
    files.check_missing_files,
    files.check_unreadable,
    files.check_duplicates,
    files.check_sizes,
    files.check_slow_readers,
    annotations.check_annotations,
    annotations.check_subsets,
    annotations.check_classes,
    annotations.check_reversed_pairs,
    lengths.check_actions,
    lengths.check_windows,
    lengths.check_frame_rates,
    check_updates,
)


@dataclass(frozen=True)
class DatasetCheck:
    """The findings about a dataset, and windows that would fit it better, if any."""

    survey: Survey
    findings: Sequence[Finding]
    suggestion: Suggestion | None

    @property
    def exit_code(self) -> int:
        """1 if there are errors, 2 if there are only warnings, else 0."""
        return exit_code(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON can hold."""
        proposal = self.suggestion
        return findings_to_dict(self.findings) | {
            "suggestion": proposal.to_dict() if proposal else None
        }

    def text(self) -> str:
        """Return the summary, the table of findings and the suggestion, as lines for people."""
        seen, now = self.survey, self.survey.config.sampling
        actions = sum(len(video.segments) for video in seen.used)
        per_epoch, updates = planned_updates(seen)
        lines = [
            f"{format_count(len(seen.used), 'video')} of "
            f"{', '.join(map(repr, subsets(seen.config.data)))}: "
            f"{format_count(actions, 'action')} of "
            f"{format_count(len(seen.annotations.classes), 'class', 'classes')}",
            f"a run: {format_count(per_epoch, 'update')} an epoch, {updates} in all",
        ]
        if self.findings:
            lines.append(findings_table(self.findings))
        if self.suggestion:
            better, pace = self.suggestion, getattr(now, self.suggestion.setting)
            fits = (now.window_size, pace) == (better.window_size, better.pace)
            told = "as they are" if fits else f"now {now.window_size} and {pace:g}"
            lines += [
                f"suggested: sampling.window_size {better.window_size} and "
                f"sampling.{better.setting} {better.pace:g} ({told}):",
                textwrap.fill(better.reason, 96, initial_indent="  ", subsequent_indent="  "),
            ]
        return "\n".join(lines)

    def totals(self) -> str:
        """Return how many findings there are of each severity."""
        return ", ".join(
            f"{severity}: {count}" for severity, count in count_by_severity(self.findings).items()
        )

    def draw_figure(self, path: Path) -> None:
        """Draw classes, lengths of actions and videos."""
        config = self.survey.config
        examples = {
            subset: annotations.count_examples(self.survey, subset)
            for subset in subsets(config.data)
        }
        draw_dataset(
            {
                subset: {name: count[name] for name in self.survey.annotations.classes}
                for subset, count in examples.items()
            },
            [
                float(length)
                for item in self.survey.items(config.data.train_subset)
                for length in lengths.measure_actions(item, self.survey)
            ],
            regression_ranges(config.head.levels, config.training.overlapping_ranges),
            config.sampling.window_size,
            [(file.frames / file.index.fps, file.index.fps) for file in self.survey.files.values()],
            path,
        )


def check_dataset(config: Experiment) -> DatasetCheck:
    """Return the findings about an experiment's data.

    Raises:
        ValueError: the annotations cannot be read at all, or the folder of videos is absent.
    """
    seen = survey_dataset(config)
    return DatasetCheck(seen, run_checks(seen), suggest_windows(seen))


def run_checks(seen: Survey) -> list[Finding]:
    """Return the findings of all checks."""
    return list(chain.from_iterable(check(seen) for check in CHECKS))
