"""What the settings of an experiment are: names, types, defaults, and meanings from docstrings."""

import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

REQUIRED = dataclasses.MISSING
"""In place of a default: the setting must be given."""

SECTIONS = ("Args:", "Attributes:")


class Setting(NamedTuple):
    """One setting.

    Attributes:
        name: dotted, as on the command line.
        kind: of its values, in words.
        default: REQUIRED if there is none.
        meaning: from its dataclass's docstring; empty if that does not mention it.
    """

    name: str
    kind: str
    default: Any
    meaning: str


class SettingGroup(NamedTuple):
    """Settings that stand side by side.

    Attributes:
        name: dotted; empty for an experiment's own.
        meaning: the first paragraph of the dataclass's docstring.
    """

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def describe_settings(kind: type, name: str = "") -> Iterator[SettingGroup]:
    """Yield the groups of settings of an experiment, outer ones first.

    Args:
        kind: the experiment's dataclass.
        name: of the group that `kind` is.
    """
    hints, meanings = get_type_hints(kind), _find_meanings(kind)
    prefix = f"{name}." if name else ""
    settings, inner = [], []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner.append((hint, prefix + field.name))
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        meaning = meanings.get(field.name, "")
        settings.append(Setting(prefix + field.name, describe_type(hint), default, meaning))
    yield SettingGroup(name, _first_paragraph(kind), tuple(settings))
    for hint, inner_name in inner:
        yield from describe_settings(hint, inner_name)  # type: ignore[arg-type]


def describe_type(hint: Any) -> str:
    """Return what values a type has, in a user's words, such as "whole number or null"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            each = describe_type(parts[0])
            return f"list of ({each})" if " or " in each else f"list of {each}"
        kinds = list(dict.fromkeys(describe_type(part) for part in parts))
        one = f"({kinds[0]})" if " or " in kinds[0] else kinds[0]
        return f"{len(parts)} × {one}" if len(kinds) == 1 else f"({', '.join(kinds)})"
    if origin is dict:
        return "mapping"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return (words | {type(None): "null"})[hint]


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _find_meanings(kind: type) -> dict[str, str]:
    """Return what docstrings say of a dataclass's fields; a class's own goes before its base's."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            found |= _parse_meanings(
                inspect.cleandoc(each.__doc__ or ""),
                [field.name for field in dataclasses.fields(kind)],
            )
    return found


def _parse_meanings(docstring: str, names: Sequence[str]) -> Mapping[str, str]:
    """Return the meanings in a docstring.

    An entry is `name, name: text`; within its text, `name`: in backquotes begins the next one's.
    """
    any_name = "|".join(names)
    begin = re.compile(rf"((?:{any_name})(?:, (?:{any_name}))*): (.*)")
    entries: list[tuple[list[str], str]] = []
    for line in _section(docstring):
        if match := begin.fullmatch(line):
            entries.append((match[1].split(", "), match[2]))
        elif entries and line:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    found: dict[str, str] = {}
    for shared, text in entries:
        # Of `a: one; `b`: two` the pieces are one, b, two.
        first, *others = re.split(rf"[;.] ((?:`(?:{any_name})`(?:, )?)+): ", text)
        found |= {name: first.strip() for name in shared}
        for inner, meaning in zip(others[::2], others[1::2], strict=True):
            found |= {name: meaning.strip() for name in re.findall(r"\w+", inner)}
    return found


def _section(docstring: str) -> list[str]:
    """Return the lines of a docstring's section of arguments; none if it has no such section."""
    lines = iter(docstring.splitlines())
    for line in lines:
        if line in SECTIONS:
            break
    body = itertools.takewhile(lambda line: not line or line.startswith(" "), lines)
    return textwrap.dedent("\n".join(body)).splitlines()
