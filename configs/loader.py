"""Loading of YAML and dotted overrides into one frozen, validated dataclass, and dumping it."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError as ParserError
from jsonargparse import ArgumentParser, Namespace

from configs.reference import describe_settings

T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parent
# How jsonargparse tells of a value of the wrong type.
WRONG_TYPE = re.compile(r'Parser key "(?P<name>[^"]+)": .*?(?:Got|Given) value: ?(?P<value>.*)')
YAML_NAMES = {"None": "null", "True": "true", "False": "false"}


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, where others keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                mark = node.value[i][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"'{key}' is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


def load(
    kind: type[T], path: str | Path, overrides: Sequence[str] = (), base: T | None = None
) -> T:
    """Return an experiment read from a YAML file.

    Args:
        kind: the dataclass to build; nested dataclasses are nested mappings. Its `supersedes`, if
            it has one, maps settings to those that they take the place of, which become null where
            they alone are given over a file's, in a file over its base or as overrides.
        path: YAML file. Its key `base` may name another file, relative to itself, whose settings it
            overrides; that one must not have a base, so that a run is described by two files at
            most.
        overrides: `--any.field value` or `--any.field=value` pairs, applied last.
        base: has the settings that are not in the files, in place of the dataclass's defaults.

    Raises:
        ValueError: the file or its base is missing or malformed, a key is unknown (the nearest
            valid name is given), settings without a default are missing (all are named), a value
            has the wrong type or is rejected by the dataclass.
    """
    content, source = _read_settings(kind, path)
    return _build_config(kind, content, overrides, source, base)


def check_names(kind: type, path: str | Path) -> None:
    """Raise ValueError unless all names in a YAML file, and in its base, are settings."""
    _check_names(kind, *_read_settings(kind, path))


def _read_settings(kind: type, path: str | Path) -> tuple[dict[str, Any], str]:
    """Return the settings in a YAML file, laid over those of its base, and where they are from."""
    path = find_config(path)
    content, source = _parse_mapping(_read_text(path), str(path)), str(path)
    if "base" in content:
        under_path = _base_path(path, content["base"])
        under = _parse_mapping(_read_text(under_path), str(under_path))
        if "base" in under:
            raise ValueError(f"{path}: its base {under_path} has a base itself; name that one")
        del content["base"]
        _check_names(kind, under, str(under_path))
        _check_names(kind, content, source)
        for name in _superseded(kind, _list_names(content)):
            group, _, own = name.rpartition(".")
            content[group][own] = None
        content, source = _merge(under, content), f"{path} over {under_path}"
    return content, source


def find_config(path: str | Path) -> Path:
    """Return where a config is: as named or, from any folder, among those that come with this code.

    Args:
        path: of a YAML file; one that begins with `configs/` and is not there is looked up here.

    Raises:
        ValueError: it is in neither place.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.parts[:1] == (CONFIGS.name,) and (here := CONFIGS.parent / path).is_file():
        return here
    known = [each.relative_to(CONFIGS.parent).as_posix() for each in CONFIGS.rglob("*.yaml")]
    known += [each.as_posix() for each in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.as_posix(), known, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}?" if near else f"the experiments are in {CONFIGS}"
    raise ValueError(f"no config at {path}; {hint}")


def find_script(name: str) -> list[str]:
    """Return what Python is given to run a script: a file as named, or one of ours.

    Args:
        name: a path; `train/e2e.py` and the like are found from any folder.

    Raises:
        ValueError: it is in neither place.
    """
    if Path(name).is_file():
        return [name]
    ours = CONFIGS.parent / name
    if Path(name).is_absolute() or not ours.is_file():
        raise ValueError(f"there is no script {name}")
    if not __name__.startswith("palindrome."):  # a checkout, whose scripts find their packages
        return [str(ours)]
    return ["-m", ".".join(("palindrome", *Path(name).with_suffix("").parts))]


def base_of(path: str | Path) -> Path | None:
    """Return the file that a config names as its base; None if it names none.

    Raises:
        ValueError: one of them cannot be read.
    """
    path = find_config(path)
    content = _parse_mapping(_read_text(path), str(path))
    return _base_path(path, content["base"]) if "base" in content else None


def _base_path(path: Path, name: Any) -> Path:
    """Return the base file `name` of the config at `path`; raise ValueError if it is missing."""
    if not isinstance(name, str):
        raise ValueError(f"{path}: 'base' is the name of one YAML file, not {name!r}")
    base = path.parent / name
    if not base.is_file():
        raise ValueError(f"{path}: there is no file {base}, its base")
    return base


def parse(
    kind: type[T],
    text: str,
    overrides: Sequence[str] = (),
    source: str = "config",
    base: T | None = None,
    migrate: Callable[[dict[str, Any]], None] = lambda settings: None,
) -> T:
    """Return an experiment read from YAML text, which has no base file; see `load`.

    Args:
        migrate: replaces settings of earlier versions in the nested settings, in place.
    """
    settings = _parse_mapping(text, source)
    migrate(settings)
    return _build_config(kind, settings, overrides, source, base)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8") from error


def _parse_mapping(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, UniqueKeys)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            problem = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise ValueError(f"{source}: not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected a mapping of settings at the top level")
    return content


def _check_names(kind: type, content: dict[str, Any], source: str) -> None:
    """Raise ValueError unless all keys are settings, and groups of settings are mappings."""
    valid = field_names(kind)
    # Below a field that is a dict the names are the user's.
    below = tuple(f"{name}." for name in _dict_value_types(kind))
    names = [name for name in _list_names(content) if not name.startswith(below)]
    _check_known(names, valid, source)
    # Sorted, an outer group comes before those within it.
    for name in sorted({name.rpartition(".")[0] for name in valid} - {""}):
        value = content
        for part in name.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else value
        if not isinstance(value, dict):
            raise ValueError(f"{source}: '{name}' is a group of settings, not {value!r}")


def _build_config(
    kind: type[T], content: dict[str, Any], overrides: Sequence[str], source: str, base: T | None
) -> T:
    _check_names(kind, content, source)
    valid = field_names(kind)
    for name, entry in _dict_value_types(kind).items():
        if not isinstance(content.get(name), dict):
            continue
        if isinstance(entry, type) and dataclasses.is_dataclass(entry):
            # One by one, so that an error names the entry it is in.
            built_entries = {}
            for key, value in content[name].items():
                where = f"{source}: {name}.{key}"
                if not isinstance(value, dict):
                    raise ValueError(f"{where}: expected a mapping of settings, not {value!r}")
                built_entries[key] = _build_config(entry, value, (), where, None)
            content = content | {name: built_entries}
    content = _merge(
        _collect_defaults(kind) if base is None else yaml.safe_load(dump(base)), content
    )
    missing = sorted(set(valid) - set(_list_names(content)), key=valid.index)
    if missing:
        raise ValueError(f"{source}: settings without a default are missing: {', '.join(missing)}")
    check_overrides(kind, overrides)
    parser = _build_parser(kind)  # type: ignore[arg-type]  # a class is hashable
    blame = source
    try:
        parsed = parser.parse_object(content)
        if overrides:
            blame = "command line"
            nulls = [f"--{name}=null" for name in _superseded(kind, _names_of(overrides))]
            parsed = parser.parse_args([*overrides, *nulls], namespace=parsed)
        for name, wanted in _describe_kinds(kind).items():  # type: ignore[arg-type]
            if parsed[name] is None and "null" not in wanted:  # jsonargparse lets it pass
                raise ValueError(f"{name}: expected {wanted}, not null")
        built: Namespace = parser.instantiate(parsed)
        return kind(**vars(built))
    except (ParserError, ValueError, TypeError) as error:
        raise ValueError(f"{blame}: {_describe_error(kind, str(error))}") from error


@functools.cache
def _describe_kinds(kind: type) -> dict[str, str]:
    """Return what values each setting takes, in words, by its dotted name."""
    kinds = {each.name: each.kind for group in describe_settings(kind) for each in group.settings}
    return {
        name: words.replace("`", "") + (" in brackets" if words.startswith("list") else "")
        for name, words in kinds.items()
    }


def _describe_error(kind: type, text: str) -> str:
    """Return a parser's message in one line; a wrong type is told in words, not in Python's."""
    text = " ".join(text.split())
    found = WRONG_TYPE.fullmatch(text)
    if found and (wanted := _describe_kinds(kind).get(found["name"])):
        value = {"": "nothing", **YAML_NAMES}.get(found["value"], found["value"])
        return f"{found['name']}: expected {wanted}, not {value}"
    group = re.fullmatch(r"Parser key \"([^\"]+)\": Unable to load config '(.*?)' .*", text)
    return f"'{group[1]}' is a group of settings, not {group[2]}" if group else text


@functools.cache  # made again it takes as long as what it reads
def _build_parser(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(kind, nested_key=None, fail_untyped=True)
    return parser


def check_overrides(kind: type, overrides: Sequence[str]) -> None:
    """Raise ValueError unless all overrides are of settings; the nearest valid name is given."""
    _check_known(_names_of(overrides), field_names(kind), "command line")


def _names_of(overrides: Sequence[str]) -> list[str]:
    return [each[2:].split("=")[0] for each in overrides if each[:2] == "--"]


def _superseded(kind: type, given: Collection[str]) -> list[str]:
    """Return the settings that given ones take the place of, if they are not given themselves."""
    pairs: dict[str, str] = getattr(kind, "supersedes", {})
    return [other for name, other in pairs.items() if name in given and other not in given]


def dump(config: Any) -> str:
    """Return an experiment as YAML text that `parse` reads back to an equal object."""
    plain = dataclasses.asdict(config)
    return yaml.safe_dump(_tuples_to_lists(plain), sort_keys=False, allow_unicode=True)


def flatten(config: Any) -> dict[str, Any]:
    """Return all settings of an experiment by their dotted names."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def field_names(kind: type, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields of a dataclass, groups included."""
    names = []
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        names.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            names += field_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return names


def _dict_value_types(kind: type) -> dict[str, Any]:
    """Return the type of the values of each field `dict[str, …]` of a dataclass."""
    hints = get_type_hints(kind)
    return {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is dict}


def _merge(under: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings `under`, overridden by those of `above`."""
    merged = dict(under)
    for key, value in above.items():
        merged[key] = _merge(under.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def _collect_defaults(kind: type) -> dict[str, Any]:
    """Return a dataclass's defaults as nested settings, without the fields that have none."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif dataclasses.is_dataclass(hints[field.name]):
            value = _collect_defaults(hints[field.name])
        else:
            continue
        found[field.name] = _tuples_to_lists(
            dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        )
    return found


def _list_names(content: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in content.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _list_names(value, f"{prefix}{key}.")
    return names


def _check_known(names: Sequence[str], valid: Sequence[str], source: str) -> None:
    for name in names:
        if name not in valid:
            near = _find_nearest(name, valid)
            hint = f"did you mean {near}?" if near else "a run's config.yaml has all settings"
            raise ValueError(f"{source}: unknown setting '{name}'; {hint}")


def _find_nearest(name: str, valid: Sequence[str]) -> str:
    """Return the names that are most like a wrong one, in quotes; empty if none is."""
    last = name.rpartition(".")[2]
    near = [each for each in valid if each.rpartition(".")[2] == last]  # `lr` for `training.lr`
    near = near or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return " or ".join(f"'{each}'" for each in near)


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(item) for key, item in value.items()}
    return [_tuples_to_lists(item) for item in value] if isinstance(value, list | tuple) else value
