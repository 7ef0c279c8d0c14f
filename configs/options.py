"""The command line of a script: its own options, and the settings of an experiment."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from configs.loader import check_names, check_overrides, field_names
from configs.reference import REQUIRED, Setting, SettingGroup, describe_settings


class ScriptParser(argparse.ArgumentParser):
    """A parser that knows an experiment's settings: it lists them, and refuses wrong names.

    It needs the dataclasses only, so that help and mistakes come before slow imports.

    Args:
        text: the script's docstring.
        settings: dataclass of the experiment; None where a script has no settings.
        uses: settings and groups of settings that make a difference to the script; None: all.
    """

    def __init__(
        self, text: str, settings: type | None = None, uses: Sequence[str] | None = None
    ) -> None:
        super().__init__(
            prog=Path(sys.argv[0]).name,
            description=text.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.settings, self.uses = settings, uses
        if settings is None:
            self.add_argument("-h", "--help", action="help", help="show this text")
            return
        self.add_argument(
            *("-h", "--help"),
            action=_HelpAction,
            nargs="?",
            const="",
            metavar="GROUP",
            default=argparse.SUPPRESS,
            help="show this text, or only the settings of a group, such as training",
        )

    def parse(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """Return the options and, as `--name=value`, what overrides settings.

        Raises:
            ValueError: there is no such option or setting, or a wrong name in the file --config.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        own, overrides = self._take_settings(given)
        # Before the parser misses what a wrong name was meant to give.
        options = list(self._option_string_actions)
        for name in (each.partition("=")[0] for each in own if each.startswith("--")):
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
            if near and name not in options:
                raise ValueError(f"command line: unknown option {name}; did you mean {near[0]}?")
        args, unknown = self.parse_known_args(own)
        if self.settings is not None:
            check_overrides(self.settings, unknown)
            if getattr(args, "config", None):
                check_names(self.settings, args.config)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return args, overrides

    def error(self, message: str) -> NoReturn:
        """End the script with a mistake in one line, and argparse's exit code."""
        self.exit(2, f"error: command line: {message}; --help lists what there is\n")

    def format_help(self) -> str:
        """Return the help text: the script's own options, then the settings."""
        if self.settings is None:
            return super().format_help()
        groups = "".join(map(self._format_group, self._groups()))
        return (
            f"{super().format_help()}\nsettings, over those of the config or checkpoint "
            f"(--help GROUP shows one group):\n\n{groups}".rstrip()
            + "\n"
        )

    def format_group(self, name: str) -> str:
        """Return the help text of one group of settings.

        Raises:
            ValueError: there is no such group.
        """
        groups = {group.name: group for group in self._groups()}
        inside = [group for key, group in groups.items() if f"{key}.".startswith(f"{name}.")]
        if not inside:
            known = ", ".join(filter(None, groups))
            raise ValueError(f"--help: there is no group of settings {name}; there are {known}")
        return "".join(map(self._format_group, inside)).rstrip() + "\n"

    def _take_settings(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the arguments without those that are settings, and these as `--name=value`."""
        names = {f"--{name}" for name in field_names(self.settings)} if self.settings else set()
        names -= self._option_string_actions.keys()
        own, overrides, remaining = list[str](), list[str](), iter(arguments)
        for argument in remaining:
            if argument in names:
                value = next(remaining, None)
                overrides.append(argument if value is None else f"{argument}={value}")
            elif argument.partition("=")[0] in names:
                overrides.append(argument)
            else:
                own.append(argument)
        return own, overrides

    def _groups(self) -> list[SettingGroup]:
        """Return the groups of settings, without those that make no difference."""
        assert self.settings is not None
        own = self._option_string_actions
        found = []
        for group in describe_settings(self.settings):
            kept = tuple(
                each
                for each in group.settings
                if self._is_used(each.name) and f"--{each.name}" not in own
            )
            if kept:
                found.append(group._replace(settings=kept))
        return found

    def _is_used(self, name: str) -> bool:
        if self.uses is None:
            return True
        return any(name == used or name.startswith(f"{used}.") for used in self.uses)

    def _format_group(self, group: SettingGroup) -> str:
        """Return a group as argparse lists options."""
        shown = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
        title = group.name or "the run"
        listed = shown.add_argument_group(title, _escape(group.meaning))
        for setting in group.settings:
            listed.add_argument(f"--{setting.name}", action="store_true", help=_explain(setting))
        return shown.format_help().lstrip("\n") + "\n"


class _HelpAction(argparse.Action):
    """Prints the help text, whole or of one group, and ends the script."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, ScriptParser)
        sys.stdout.write(parser.format_group(values) if values else parser.format_help())
        parser.exit()


def _explain(setting: Setting) -> str:
    """Return what a setting means, its type and its default."""
    default = "must be given"
    if setting.default is not REQUIRED:
        default = f"default: {_format_value(setting.default)}"
    kind = setting.kind.replace("`", "")
    return _escape(f"{setting.meaning.rstrip('.')} ({kind}; {default})".lstrip())


def _format_value(value: Any) -> str:
    """Return a value as it is written on a command line."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]


def _escape(text: str) -> str:
    """Return a text that argparse prints as it is."""
    return text.replace("%", "%%")
