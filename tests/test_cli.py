"""Entry scripts end alike: one line and a code for what is expected, a traceback for bugs."""

import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache.errors import Damaged, StoreError
from cache.store import Store
from configs import cli
from configs.messages import EXPECTED
from evaluate.diagnose import find_predictions

REPOSITORY = Path(__file__).parent.parent
WORKERS = {"extract/video/guarded_worker.py"}  # started by us, not by people


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_expected_error_is_one_line_and_code_1(kind: type[Exception]) -> None:
    def main() -> None:
        raise kind("data.videos: there is no folder")

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    # Python writes a text to stderr, and ends with 1.
    assert end.value.code == "error: data.videos: there is no folder"


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise KeyError("of ours")

    with pytest.raises(KeyError, match="of ours"):
        cli.run(main)


@pytest.mark.parametrize("code", [0, 1, 2, "error: of its own"])
def test_an_end_of_its_own_is_kept(code: int | str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(partial(sys.exit, code))
    assert end.value.code == code


def test_without_an_error_it_returns() -> None:
    cli.run(lambda: None)


@pytest.mark.parametrize("joined", [True, False])
def test_processes_part_where_all_went_well(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's collectives are ended by all together; what failed leaves that to the launcher."""
    calls = list[str]()
    distributed = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: joined,
        destroy_process_group=lambda: calls.append("part"),
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    cli.run(lambda: calls.append("main"))
    assert calls == ["main", "part"][: 1 + joined]
    with pytest.raises(SystemExit):
        cli.run(partial(sys.exit, "error: of its own"))
    assert calls.count("part") == joined


@pytest.mark.parametrize("hint", ["", "the same command goes on"])
def test_ctrl_c_is_one_line_and_code_130(hint: str) -> None:
    code = (
        "import os, signal\nfrom configs import cli\n"
        f"cli.run(lambda: os.kill(os.getpid(), signal.SIGINT), {hint!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130 and not done.stderr
    assert done.stdout == (f"interrupted; {hint}\n" if hint else "interrupted\n")


def test_every_entry_script_ends_with_it() -> None:
    scripts = {
        str(file.relative_to(REPOSITORY)): file.read_text()
        for stage in ("cache", "extract", "train", "evaluate")
        for file in (REPOSITORY / stage).rglob("*.py")
        if '__name__ == "__main__"' in file.read_text()
    }
    assert set(scripts) >= WORKERS
    for name in set(scripts) - WORKERS:
        end = scripts[name].rstrip().rpartition('if __name__ == "__main__":')[2].strip()
        assert end.startswith("cli.run(main") and "\n" not in end, name
        assert "EXPECTED as" not in scripts[name].partition("def main")[2].partition("\ndef ")[0]


def test_what_a_terminal_cannot_write_ends_no_run() -> None:
    """A name that is not UTF-8, and a sign that the terminal's encoding lacks."""
    code = (
        "import sys\nfrom configs import cli\ndef main():\n"
        "    print('caf\\udce9 \\u2588')\n    sys.exit('error: caf\\udce9')\ncli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "caf\\udce9 \\u2588\n" and done.stderr == "error: caf\\udce9\n"


def test_commands_in_messages_can_be_pasted(tmp_path: Path) -> None:
    url = str(tmp_path / "my cache")
    with pytest.raises(StoreError) as missing:
        Store(url)
    messages = [str(missing.value), str(Damaged("index/1", "cut", url))]
    with pytest.raises(ValueError, match="score it first") as unscored:
        find_predictions(tmp_path / "my run/last.pt", "test", "both")
    messages.append(str(unscored.value))
    for message, path in zip(messages, [url, url, str(tmp_path / "my run/last.pt")], strict=True):
        command = message.partition("python ")[2].partition("`")[0].partition(")")[0]
        assert path in shlex.split(command)
