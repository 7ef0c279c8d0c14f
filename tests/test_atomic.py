"""A file is whole at every moment, however many write it and however they end."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from configs.atomic import atomic_path, write_text

TIMES = 200


def write_often(path: Path, letter: str) -> None:
    for _ in range(TIMES):
        write_text(path, letter * 5000)


def hang(path: Path) -> None:
    with atomic_path(path) as aside:
        aside.write_text("half")
        time.sleep(600)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_two_write_the_same_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    write_text(path, "x" * 5000)
    errors: list[BaseException] = []

    def guarded(letter: str) -> None:
        try:
            write_often(path, letter)
        except OSError as error:
            errors.append(error)

    context = multiprocessing.get_context("spawn")
    writers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        threading.Thread(target=guarded, args=(letter,))
        if kind == "threads"
        else context.Process(target=write_often, args=(path, letter))
        for letter in "ab"
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 5000 and len(set(text)) == 1
    for writer in writers:
        writer.join()
        assert getattr(writer, "exitcode", 0) == 0
    assert not errors
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a") as aside:
        aside.write_text("new")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = multiprocessing.get_context("spawn").Process(target=hang, args=(path,))
    writer.start()
    while not (tmp_path / "a.part").exists() or not (tmp_path / "a.part").stat().st_size:
        assert writer.is_alive()
        time.sleep(0.005)
    write_text(path, "beside it")  # while it lives, its file is its own
    assert path.read_text() == "beside it" and (tmp_path / "a.part").read_text() == "half"
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    write_text(path, "after it")
    assert path.read_text() == "after it"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_it_has_the_mode_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_without_locks_names_are_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"]


def test_any_name_that_fits_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, os.fsdecode(b"caf\xe9.json")):
        path = tmp_path / name
        write_text(path, json.dumps(name, ensure_ascii=False))
        assert json.loads(path.read_text(encoding="utf-8")) == name
    assert len(list(tmp_path.iterdir())) == 3
