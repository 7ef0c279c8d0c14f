"""The README and docs/: short, true to the code, and every command in them can be given."""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from accelerate.commands.launch import launch_command_parser

from configs.command import SCRIPTS
from configs.loader import field_names, load, parse
from evaluate.annotations import read_annotations
from tests import documents
from tests.conftest import REPOSITORY
from tests.documents import PAGES, README, WRITTEN, Command
from tests.test_imports import STAGES
from train import export
from train.ablation.grid import read_grid
from train.config import Experiment
from train.recognition.config import Recognition

COMMANDS = dict.fromkeys(
    command
    for page in PAGES
    for command in (*documents.shell_commands(page), *documents.inline_commands(page))
    if command.words[0] != "."
)
DEMO = "configs/e2e/demo/forward.yaml"
# What commands and code need and nobody can have from here: published data and weights, data of
# the reader's own, a cluster, the Hub.
ABSENT = re.compile(
    r"thumos14|e2e/own\.yaml|e2e\.py own\.yaml|runs/own/|i3d|my_clips|slurm|videomae-small|ORG/NAME"
)
NEEDED = {"--onnx": export.NEEDED}  # packages that an option needs
# Sizes of the demo's datasets with which its commands take seconds.
SMALL = "--training 4 --validation 2 --test 3 --shortest 5 --longest 9"
SMALL_CLIPS = "--training 2 --validation 1 --test 1"
PIPED = bytes(320 * 240 * 3 * 50)  # frames for code that reads a camera
FINDINGS = {"extract/check.py": (0, 1, 2)}  # exit codes that tell what was found, not a failure


class Parsed(BaseException):
    """Ends a script's `main` when its command line is parsed."""

    def __init__(self, args: argparse.Namespace, overrides: Sequence[str]) -> None:
        self.arguments, self.overrides = args, list(overrides)


def test_the_readme_is_short_and_says_how_to_test() -> None:
    assert len(README.read_text().splitlines()) <= 200
    assert ["make", "test"] in [list(each.words) for each in documents.shell_commands(README)]
    assert "make test\n" in (REPOSITORY / ".ci/run").read_text()


def test_the_readme_recognises_a_clip_by_command_and_from_python() -> None:
    """The page of recognition tells more; whoever reads the README alone finds the way."""
    code = documents.inline_code(README)
    assert 'Recogniser.from_checkpoint(path).recognise("video.mp4")' in code
    assert any(each.startswith("python evaluate/recognise.py ") for each in code)


def parse_command(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, argparse.Namespace, list[str]]:
    """Return a command's script, and its arguments as the script itself parses them."""
    while "=" in words[0]:  # variables of the environment
        words = words[1:]
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(list(words[2:]))
        if launched.config_file is not None:
            assert (REPOSITORY / launched.config_file).is_file()
        script, rest = launched.training_script, launched.training_script_args
    elif words[1] == "-m":
        script, rest = words[2].replace(".", "/") + ".py", words[3:]
    else:
        script, rest = words[1], words[2:]
    assert (REPOSITORY / script).is_file(), f"there is no {script}"
    parse_known = argparse.ArgumentParser.parse_known_args

    def end_with_overrides(parser: argparse.ArgumentParser, args: Any = None) -> NoReturn:
        raise Parsed(*parse_known(parser, args))

    def end(parser: argparse.ArgumentParser, args: Any = None) -> NoReturn:
        found, unknown = parse_known(parser, args)
        assert not unknown, f"{script} does not know {unknown}"
        raise Parsed(found, [])

    module = import_module(script.removesuffix(".py").replace("/", "."))
    with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(sys, "argv", [script, *rest])
        patch.setattr(argparse.ArgumentParser, "parse_known_args", end_with_overrides)
        patch.setattr(argparse.ArgumentParser, "parse_args", end)
        module.main()
    return script, parsed.value.arguments, parsed.value.overrides


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.words[0] == "make":
        (target,) = command.words[1:]
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.M)
        return
    words = ["0" if word == "RANK" else word for word in command.words]
    script, args, overrides = parse_command(words, monkeypatch)
    if not overrides:
        return
    config = getattr(args, "config", None)
    file = None if config is None else REPOSITORY / config
    if "recogni" in script:
        load(Recognition, file or REPOSITORY / "configs/recognition/demo.yaml", overrides)
    elif file is not None and file.is_file() and "fusion" not in file.parts:
        load(Experiment, file, overrides)
    else:  # laid over a checkpoint's settings: of a transformer of 12 blocks
        demo = load(Experiment, REPOSITORY / DEMO, ["--backbone.trunk.depth", "12"])
        parse(Experiment, "{}", overrides, base=demo)


@pytest.mark.parametrize(
    "page", [*PAGES, REPOSITORY / "ARCHITECTURE.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in documents.links(page):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in documents.anchors(file), f"{page.name}: {link}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_installed_commands_that_are_named_exist(page: Path) -> None:
    for code in documents.inline_code(page):
        for name in re.findall(r"\bpalindrome ([\w-]+)", code):
            assert name in (*SCRIPTS, "--help", "--completion"), f"{page.name}: {code}"


def expand(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        yield pattern
        return
    choices, _, after = rest.partition("}")
    for choice in choices.split(","):
        yield from expand(before + choice + after)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "|".join([*STAGES, "benchmarks", "docs", "tests"])
    for code in documents.inline_code(page):
        for word in code.split():
            if not re.match(rf"({folders})/[\w./*{{}},-]*$", word):
                continue
            for name in expand(word):
                found = list(REPOSITORY.glob(name.rstrip("/"))) or list(
                    REPOSITORY.glob(f"{name}.py")
                )
                assert found, f"{page.name}: {name}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {*field_names(Experiment), *field_names(Recognition)}
    groups = "|".join({name.split(".")[0] for name in known if "." in name})
    for code in documents.inline_code(page):
        for word in re.findall(rf"(?<![\w./])(?:{groups})\.[a-z_.]+(?![\w(/*])", code):
            is_file = (
                word.endswith(".py")
                or (REPOSITORY / word.replace(".", "/")).with_suffix(".py").is_file()
            )
            assert is_file or word.rstrip(".") in known, f"{page.name}: {word}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_python_in_pages_imports_what_there_is(page: Path) -> None:
    for block in documents.fenced(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Links within docs/ that lead nowhere end it, and so do names in api.md that are gone."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    command = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {page.stem for page in tmp_path.iterdir()} >= {page.stem for page in PAGES[1:]} - {
        "index"
    }


def test_names_of_the_python_page_exist() -> None:
    text = (REPOSITORY / "docs/api.md").read_text()
    for name, members in re.findall(
        r"^::: (\S+)$(?:\n    options: {members: \[(.*)\]})?", text, re.M
    ):
        module, _, inner = name.rpartition(".")
        found = getattr(import_module(module), inner)
        assert found.__doc__
        for member in filter(None, members.split(", ")):
            assert getattr(found, member).__doc__


def test_examples_of_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (README, REPOSITORY / "docs/own-data.md"):
        for kind in ("csv", "json"):
            for example in documents.fenced(page, kind):
                (tmp_path / f"example.{kind}").write_text(example)
                annotations = read_annotations(tmp_path / f"example.{kind}")
                assert set(annotations.videos) == {"my_video", "other"}
    (example,) = documents.fenced(REPOSITORY / "docs/directions.md", "yaml")
    (tmp_path / "grid.yaml").write_text(example)
    monkeypatch.chdir(REPOSITORY)  # its configs lie there
    assert len(read_grid(tmp_path / "grid.yaml").runs()) == 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `make demo` ran, on few and short videos."""
    return make_small_demo(tmp_path_factory.mktemp("checkout"))


def make_small_demo(folder: Path) -> Path:
    """Copy the code to a folder, run its `make demo` there, and return it.

    Videos are few and short, and training lasts four epochs.
    """
    for name in (*STAGES, "benchmarks", "Makefile"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy2
        copy(REPOSITORY / name, folder / name)
    makefile = folder / "Makefile"
    text = makefile.read_text()
    make_data = "extract/demo.py --out data/demo\n"
    assert text.count(make_data) == 2  # of the demo and its control
    makefile.write_text(text.replace(make_data, f"{make_data[:-1]} {SMALL}\n"))
    for config in (folder / "configs").rglob("*.yaml"):
        text = re.sub(r"\b((stop_)?epochs: )[1-9]\d+", r"\g<1>4", config.read_text())
        text = re.sub(r"\bupdates: [1-9]\d+", "updates: 8", text)
        text = re.sub(r"\b(warmup_epochs|validate_\w+): \d+", r"\1: 1", text)
        config.write_text(text)
    ready = folder / "ready"  # nothing is to be installed
    ready.touch()
    run_in(
        folder,
        ["make", "demo", f"BIN={Path(sys.executable).parent}", "INSTALLED=ready", "-o", "ready"],
    )
    write_own_videos(folder)
    return folder


def write_own_videos(folder: Path) -> None:
    """Write what a reader's own videos are in the README, from those of the demo."""
    shutil.copytree(folder / "data/demo/videos", folder / "data/own/videos")
    database = json.loads((folder / "data/demo/annotations.json").read_text())["database"]
    rows = ["video,start,end,label,subset"]
    for name, video in database.items():
        for action in video["annotations"]:
            start, end = action["segment"]
            rows.append(f"{name},{start},{end},{action['label']},{video['subset']}")
    (folder / "data/own/actions.csv").write_text("\n".join(rows))


def run_in(folder: Path, words: Sequence[str], piped: bytes = b"") -> None:
    """Run a command in a folder as a reader would; fail the test if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": "1"}
    environment = os.environ | threads | {"PATH": path, "PYTHONPATH": str(folder)}
    while "=" in words[0]:
        name, value = words[0].split("=", 1)
        environment[name], words = value, words[1:]
    done = subprocess.run(words, cwd=folder, env=environment, input=piped, capture_output=True)
    told = (done.stdout + done.stderr).decode(errors="replace")
    expected = FINDINGS.get(words[1], (0,))
    assert done.returncode in expected, f"{' '.join(words)}\n{told[-3000:]}"


def is_runnable(command: Command) -> bool:
    """Return whether a command has all that it needs, once `make demo` has run."""
    if command.has_placeholder or command.words[0] in ("make", "."):
        return False
    packages = [name for word in command.words for name in NEEDED.get(word, ())]
    if any(find_spec(name) is None for name in packages):
        return False
    return not ABSENT.search(" ".join(word for word in command.words if word[0] != "-"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_code_run(page: Path, demo: Path) -> None:
    for command in filter(is_runnable, documents.shell_commands(page)):
        words = list(command.words)
        if "extract/demo.py" in words:
            words += SMALL_CLIPS.split()
        run_in(demo, words)
    for block in documents.fenced(page, "python"):
        if ABSENT.search(block):
            continue
        run_in(demo, [sys.executable, "-c", block], PIPED)
