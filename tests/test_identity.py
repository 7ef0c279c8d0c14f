"""Digests of files: right whatever happens to them, and computed once wherever the home is."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from extract.identity import user_cache
from extract.identity.digest import remembered_digest, video_digest
from tests.conftest import REPOSITORY
from tests.test_disk import files_end_at


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache folder, empty; no warning was printed yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(user_cache, "_unwritten", {})
    user_cache._warned.clear()
    yield tmp_path / "cache/palindrome/videos"
    user_cache._warned.clear()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read whole."""
    names = []
    file_digest = hashlib.file_digest

    def counted(file: Any, algorithm: Any) -> Any:
        names.append(Path(file.name).name)
        return file_digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unwritable(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the user a home that nobody can write to, root neither; return what names it."""
    (folder / "file").touch()
    match kind:
        case "below a file":
            monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/file")
            return f"{folder}/file"
        case "no home":
            monkeypatch.delenv("XDG_CACHE_HOME")

            def home() -> Path:
                raise RuntimeError("Could not determine home directory.")

            monkeypatch.setattr(Path, "home", home)
            return "no home"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    return "/proc/1/nowhere"


HOMES = ["below a file", "/proc", "no home"]


@pytest.mark.parametrize("kind", HOMES)
def test_an_unwritable_home_costs_one_reading_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hashed: list[str],
    kind: str,
) -> None:
    name = unwritable(kind, tmp_path, monkeypatch)
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for number, path in enumerate(videos):
        path.write_bytes(bytes([number]) * 1000)
    for _ in range(5):
        for path in videos:
            assert video_digest(path) == remembered_digest(path) == sha256(path)
    assert hashed == [path.name for path in videos]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and name in printed and "set XDG_CACHE_HOME" in printed
    videos[1].write_bytes(b"another")  # what is remembered in memory is checked, too
    assert remembered_digest(videos[1]) is None
    assert video_digest(videos[1]) == sha256(videos[1]) and len(hashed) == 4


def test_an_unwritable_home_is_reported_once_by_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unwritable("below a file", tmp_path, monkeypatch)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: user_cache.save(str(number), b"x"), range(64)))
    assert capsys.readouterr().out.count("\n") == 1
    assert all(user_cache.load(str(number)) == b"x" for number in range(64))


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_of_a_machine_reports(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    lines: int,
) -> None:
    unwritable("below a file", tmp_path, monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", rank)
    user_cache.save("name", b"x")
    assert capsys.readouterr().out.count("\n") == lines


def test_loader_workers_do_not_repeat_the_warning(tmp_path: Path) -> None:
    """A whole process with an unwritable home; its workers are spawned."""
    (tmp_path / "video.mp4").write_bytes(b"abc")
    program = f"""
from multiprocessing import get_context
from extract.identity.digest import video_digest
if __name__ == "__main__":
    path = {str(tmp_path / "video.mp4")!r}
    with get_context("spawn").Pool(2) as pool:
        assert len({{video_digest(path), *pool.map(video_digest, [path] * 4, 1)}}) == 1
"""
    (script := tmp_path / "program.py").write_text(program)
    environment = os.environ | {"HOME": "/proc/1/nowhere", "PYTHONPATH": str(REPOSITORY)}
    del environment["XDG_CACHE_HOME"]
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "/proc/1/nowhere" in done.stdout


def test_a_full_disk_is_an_unwritable_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path, hashed: list[str]
) -> None:
    (path := tmp_path / "video.mp4").write_bytes(b"abc")
    with files_end_at(0):
        for _ in range(2):
            assert video_digest(path) == sha256(path)
    assert len(hashed) == 1 and "File too large" in capsys.readouterr().out
    os.utime(path, ns=(1, 1))
    video_digest(path)  # the disk has room again
    (memo,) = cache.rglob("*.json")
    assert json.loads(memo.read_bytes())[-1] == sha256(path) and not user_cache._unwritten


def test_an_outdated_memo_that_cannot_be_replaced_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    """A home that has become read-only."""
    (path := tmp_path / "video.mp4").write_bytes(b"abc")
    video_digest(path)
    path.write_bytes(b"changed")

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(user_cache, "atomic_path", refuse)
    for _ in range(3):
        assert video_digest(path) == sha256(path)
    assert len(hashed) == 2


def test_a_growing_file_has_the_digest_of_its_content(tmp_path: Path, hashed: list[str]) -> None:
    """A recording, or a download that appends."""
    path = tmp_path / "video.mp4"
    with path.open("wb") as file:
        for number in range(20):
            file.write(bytes([number]) * 5000)
            file.flush()
            assert video_digest(path) == sha256(path) == video_digest(path)
    assert len(hashed) == 20


def test_a_file_of_fixed_size_that_fills_has_the_digest_of_its_content(tmp_path: Path) -> None:
    """A download into room that was taken at once: only times change, as fast as the clock."""
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(50_000))
    with path.open("r+b") as file:
        for number in range(1, 10):
            before = os.stat(path).st_ctime_ns
            while os.stat(path).st_ctime_ns == before:
                file.seek(number * 5000)
                file.write(bytes([number]) * 5000)
                file.flush()
            assert video_digest(path) == sha256(path) == video_digest(path)


@pytest.mark.parametrize("change", ["grows", "is replaced"])
def test_what_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (path := tmp_path / "video.mp4").write_bytes(b"abc")
    (other := tmp_path / "other.mp4").write_bytes(b"xyz")
    os.utime(other, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns))
    file_digest = hashlib.file_digest

    def changing(file: Any, algorithm: Any) -> Any:
        digest = file_digest(file, algorithm)
        if change == "grows":
            with path.open("ab") as more:
                more.write(b"d")
        else:
            other.replace(path)
        return digest

    monkeypatch.setattr(hashlib, "file_digest", changing)
    assert video_digest(path) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert remembered_digest(path) is None and video_digest(path) == sha256(path)


def test_hard_links_have_the_digest_of_their_content(tmp_path: Path) -> None:
    """What is written under one name changes the other."""
    (one := tmp_path / "one.mp4").write_bytes(b"abc")
    (two := tmp_path / "two.mp4").hardlink_to(one)
    assert video_digest(one) == video_digest(two) == sha256(one)
    two.write_bytes(b"abd")
    os.utime(two, ns=(1, 1))
    assert remembered_digest(one) is None
    assert video_digest(one) == video_digest(two) == sha256(one)
    before = video_digest(one)
    two.unlink()
    two.write_bytes(b"its own")  # no link any more
    assert video_digest(one) == before and video_digest(two) == sha256(two) != before


def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    (path := tmp_path / "video.mp4").write_bytes(b"abc")
    video_digest(path)
    (other := tmp_path / "other.mp4").write_bytes(b"xyz")
    status = os.stat(path)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    while os.stat(other).st_ctime_ns <= status.st_ctime_ns:  # a tick of the clock
        other.chmod(0o644)
    other.replace(path)
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns
    assert video_digest(path) == sha256(path)
