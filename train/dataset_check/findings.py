"""Findings of a dataset check, as a table for the terminal and whole for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "info"]
SHOWN = 3  # places of each kind in the table; the file has all


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding: `error` stops or spoils training, `warning` is unwise, `info` is neither;
    `advice` is what to do about it."""

    name: str
    severity: Severity
    advice: str


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in one sentence.

    Args:
        video, entry: where: an annotated video or a file's name, and a place in the list of its
            annotations, counted from 0; None if it is not about a single one.
        numbers: those of the sentence, for programs.
    """

    kind: FindingKind
    text: str
    video: str | None = None
    entry: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


def group_by_kind(findings: Sequence[Finding]) -> dict[FindingKind, list[Finding]]:
    """Return findings by kind, errors first, otherwise in the order in which they came."""
    kinds: dict[FindingKind, list[Finding]] = {}
    for severity in get_args(Severity):
        for finding in findings:
            if finding.kind.severity == severity:
                kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def count_by_severity(findings: Sequence[Finding]) -> dict[Severity, int]:
    """Return how many findings there are of each severity."""
    severities = [finding.kind.severity for finding in findings]
    return {severity: severities.count(severity) for severity in get_args(Severity)}


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if there are errors, 2 if there are only warnings, else 0."""
    count = count_by_severity(findings)
    return 1 if count["error"] else 2 if count["warning"] else 0


def findings_table(findings: Sequence[Finding]) -> str:
    """Return the kinds with their counts, the first places of each and what to do, as text."""
    lines = []
    for kind, found in group_by_kind(findings).items():
        lines.append(f"{kind.severity:<7} {len(found):>6}  {kind.name}")
        lines += [f"{'':16}- {finding.text}" for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"{'':16}- … and {len(found) - SHOWN} more")
        lines.append(f"{'':16}=> {kind.advice}")
    return "\n".join(lines)


def findings_to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all findings in types that JSON can hold."""
    return {
        "counts": count_by_severity(findings),
        "kinds": [
            {
                "kind": kind.name,
                "severity": kind.severity,
                "count": len(found),
                "advice": kind.advice,
            }
            for kind, found in group_by_kind(findings).items()
        ],
        "findings": [
            {
                "kind": finding.kind.name,
                "severity": finding.kind.severity,
                "video": finding.video,
                "entry": finding.entry,
                "text": finding.text,
                "numbers": dict(finding.numbers),
            }
            for found in group_by_kind(findings).values()
            for finding in found
        ],
    }
