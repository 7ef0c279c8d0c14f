"""The installed command: every script under one name, its help, and completion in a real bash."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import command
from tests.conftest import REPOSITORY
from tests.test_options import SCRIPTS


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `palindrome` as installers write it."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "palindrome"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom configs.command import run_command\n"
        "if __name__ == '__main__':\n    sys.exit(run_command())\n"
    )
    program.chmod(0o755)
    return folder


def call(
    bin_folder: Path, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bin_folder / "palindrome", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_every_script_has_a_command() -> None:
    scripts = {name.removesuffix(".py").replace("/", ".") for name in SCRIPTS}
    assert set(command.SCRIPTS.values()) == scripts


def test_the_overview_lists_commands_with_what_they_do(bin_folder: Path) -> None:
    done = call(bin_folder)
    assert done.returncode == 0 and done.stdout == call(bin_folder, "--help").stdout
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line[:2] == "  "}
    assert set(lines) == set(command.SCRIPTS)
    assert lines["train"].endswith("Train a detector end to end, from video files.")


def test_help_is_the_scripts_own_under_the_commands_name(bin_folder: Path) -> None:
    done = call(bin_folder, "detect", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: palindrome detect [-h [GROUP]] --checkpoint")
    assert "--evaluation.nms.sigma" in done.stdout
    assert call(bin_folder, "--help", "detect").stdout == done.stdout


def test_version(bin_folder: Path) -> None:
    assert call(bin_folder, "--version").stdout.startswith("palindrome 0.")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["detct"], "palindrome: there is no command detct; did you mean detect?"),
        (["--help", "training"], "palindrome: there is no command training; did you mean train?"),
        (["xyzzy"], "palindrome: there is no command xyzzy; palindrome --help lists them"),
        (["--completion", "fish"], "--completion: give bash or zsh"),
        (
            ["train", "--config", "configs/e2e/demo/forward.yaml", "--lr", "1"],
            "command line: unknown setting 'lr'; did you mean 'training.lr'?",
        ),
    ],
)
def test_mistakes_are_one_line(bin_folder: Path, given: list[str], told: str) -> None:
    done = call(bin_folder, *given)
    assert done.returncode == 1 and done.stderr == f"error: {told}\n" and not done.stdout


@pytest.mark.slow
def test_a_script_with_processes_of_its_own_runs(bin_folder: Path, tmp_path: Path) -> None:
    """The processes are spawned: they import what the script's own process did."""
    sizes = ["--training", "2", "--validation", "0", "--test", "1", "--processes", "2"]
    done = call(
        bin_folder,
        *("demo", "--out", "data", *sizes, "--shortest", "1", "--longest", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data/videos").glob("*.mp4"))) == 3
    # This one decodes in processes, and records its command.
    config = ["--config", "configs/e2e/demo/forward.yaml", "--data.validation_subset", "null"]
    done = call(bin_folder, "check", *config, "--out", "found", "--data.annotations",
                "data/annotations.json", "--data.videos", "data/videos", "--data.classes",
                "data/classes.txt", cwd=tmp_path)  # fmt: skip
    assert "error:" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    found = json.loads((tmp_path / "found/check.json").read_text())
    assert "cannot be read" not in str(found)
    assert "palindrome check \\\n" in (tmp_path / "found/report.html").read_text()


def complete(bin_folder: Path, *words: str) -> list[str]:
    """Return what bash proposes for the last of these words."""
    quoted = shlex.join(words)
    script = (
        'eval "$(palindrome --completion bash)"\n'
        "complete -p palindrome >&2 || exit 1\n"
        f"COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_palindrome; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "_palindrome" in done.stderr, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_settings(bin_folder: Path) -> None:
    assert set(complete(bin_folder, "palindrome", "")) == {
        *command.SCRIPTS,
        *("--help", "--version"),
    }
    assert complete(bin_folder, "palindrome", "det") == ["detect"]
    assert complete(bin_folder, "palindrome", "detect", "--pa") == ["--page"]
    assert complete(bin_folder, "palindrome", "train", "--he") == [
        *("--help", "--head.width", "--head.heads", "--head.embed_convs", "--head.stem_blocks"),
        *("--head.levels", "--head.drop_path", "--head.tower_convs", "--head.input_dropout"),
        *("--head.learns", "--head.attention_window", "--head.positions"),
        "--head.projection_dropout",
    ]
    assert complete(bin_folder, "palindrome", "detect", "vid") == []  # files, by -o default
