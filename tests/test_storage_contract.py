"""What a store needs of a place: every place behaves the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from cache.storage.base import Content, Files, read_whole
from cache.storage.local import LocalFiles
from cache.storage.open import open_files
from cache.storage.remote import RemoteFiles

PLACES: dict[str, Callable[[Path], Files]] = {
    "path": lambda folder: open_files(folder / "store"),
    "file URL": lambda folder: open_files(f"file://{folder}/store"),
    "memory URL": lambda folder: open_files(f"memory://{uuid4()}/store"),
    # Real folders behind fsspec, as SFTP has them.
    "disk behind fsspec": lambda folder: RemoteFiles(f"file://{folder}/store"),
    "object store": lambda folder: open_files(f"s3://bucket/{uuid4()}/store"),
}


@pytest.fixture(params=PLACES)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "object store":
        request.getfixturevalue("s3")
    return PLACES[request.param](tmp_path)


def test_paths_and_file_urls_need_no_fsspec(tmp_path: Path) -> None:
    for place in ("path", "file URL"):
        assert isinstance(PLACES[place](tmp_path), LocalFiles)
    assert isinstance(PLACES["memory URL"](tmp_path), RemoteFiles)


def test_ranges_are_what_was_written(files: Files) -> None:
    pieces: Content = [b"0123", np.frombuffer(b"456789", np.uint8)]
    files.write("a/b/one.bin", pieces)
    files.write("two.bin", [b"xyz"], durable=False)
    ranges = [("a/b/one.bin", 2, 6), ("two.bin", 0, 2), ("a/b/one.bin", 8, 99), ("two.bin", 0, 0)]
    found = [None if each is None else bytes(each) for each in files.read(ranges)]
    assert found == [b"2345", b"xy", b"89", b""]
    assert files.read([]) == []
    whole = read_whole(files, "a/b/one.bin", None)
    assert whole is not None and bytes(whole) == b"0123456789"
    assert files.size("a/b/one.bin") == 10 and files.size("two.bin") == 3


def test_what_is_not_there_is_none_beside_what_is(files: Files) -> None:
    files.write("here", [b"1"])
    found = files.read([("gone", 0, 1), ("here", 0, 1), ("no/folder", 0, 1)])
    assert found[0] is None and found[2] is None
    assert found[1] is not None and bytes(found[1]) == b"1"
    assert files.size("gone") is None and files.size("no/folder") is None
    assert files.children("no") == {} and files.grandchildren("no") == {}
    assert files.walk("no") == {}
    files.delete("gone")
    files.delete("no/file", "gone")
    files.delete_folder("no/folder")
    with pytest.raises(FileNotFoundError):
        files.move("gone", "elsewhere")


def test_files_are_replaced_whole(files: Files) -> None:
    files.write("x", [b"long content"])
    files.write("x", [b"new"])
    found = read_whole(files, "x", None)
    assert found is not None and bytes(found) == b"new"
    assert files.children("") == {"x": 3}  # nothing that was written aside stays


def test_a_failed_write_leaves_what_was_there(files: Files) -> None:
    class Failing(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            yield b"new"
            raise RuntimeError("no more")

    files.write("x", [b"old"])
    for name in ("x", "y"):
        with pytest.raises(RuntimeError, match="no more"):
            files.write(name, Failing())
    found = read_whole(files, "x", None)
    assert found is not None and bytes(found) == b"old"
    assert files.children("") == {"x": 3}


def test_moved_files_have_their_new_name_alone(files: Files) -> None:
    files.write("a/old", [b"12"])
    files.write("a/new", [b"replaced"])
    files.move("a/old", "a/new")
    assert files.children("a") == {"new": 2}
    found = read_whole(files, "a/new", 2)
    assert found is not None and bytes(found) == b"12"


def test_listings_tell_files_from_folders(files: Files) -> None:
    for name, size in {"p/a/1": 1, "p/a/2": 2, "p/b/3": 3, "p/b/deep/4": 4, "p/file": 5}.items():
        files.write(name, [bytes(size)])
    assert files.children("p") == {"a": None, "b": None, "file": 5}
    assert list(files.children("p/a").items()) == [("1", 1), ("2", 2)]
    assert files.grandchildren("p") == {"a": {"1": 1, "2": 2}, "b": {"3": 3, "deep": None}}
    assert sum(files.walk("p").values()) == 15 and sum(files.walk("p/b").values()) == 7
    assert files.walk("p/b") == {"p/b/3": 3, "p/b/deep/4": 4}
    assert files.walk().keys() > files.walk("p/b").keys()


def test_deleted_folders_take_all_with_them(files: Files) -> None:
    for name in ("p/a/1", "p/b/2", "q"):
        files.write(name, [b"x"])
    files.delete_folder("p/a")
    files.delete("q")
    assert files.size("p/a/1") is None and files.size("q") is None
    assert files.grandchildren("p") == {"b": {"2": 1}}
    files.delete_folder("p")
    assert files.walk("p") == {}


def test_files_go_together_whether_all_are_there_or_not(files: Files) -> None:
    for name in ("p/a", "p/b", "p/c"):
        files.write(name, [b"x"])
    files.delete("p/a", "p/gone", "p/b")
    assert files.walk() == {"p/c": 1}
    files.delete()
    assert files.walk() == {"p/c": 1}


def test_room_is_a_number_or_unknown(files: Files) -> None:
    free = files.free_bytes()
    assert (free is not None and free > 0) if isinstance(files, LocalFiles) else free is None
