"""A store wherever fsspec reaches.

Clients of remote places raise whatever they like; here all of it becomes `StoreUnreachable`, except
FileNotFoundError. Retries are made here, too, the same for every client and few, and clients that
can be told so make none of their own: theirs multiply (s3fs over botocore asks 125 times).
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import fsspec
import numpy as np
from fsspec.core import url_to_fs

from cache.errors import StoreUnreachable
from cache.storage.base import Content, Range
from cache.storage.codec import Bytes

T = TypeVar("T")

WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.6, 0.6)  # before each retry
RETRY_S = 3.0  # no retry later than this after the first try, which may have taken a timeout
CONNECT_S, ANSWER_S = 4.0, 15.0  # timeouts

JOINED_BYTES = 2**25  # of one request: two for a batch, which a network carries side by side
GAP_BYTES = 2**17  # fetched in vain rather than asking again: some milliseconds' worth
FIRST_REQUESTS, REQUESTS = 8, 64  # at a time; first few, for an outage fails each of them

LONGEST_CAUSE = 200


class RemoteFiles:
    """A folder of an object store, or of anything else that fsspec reaches."""

    batch_bytes = 2**26

    def __init__(self, url: str) -> None:
        """Connect where the client does that at once.

        Raises:
            ImportError, ValueError: no installed client knows such URLs.
            StoreUnreachable: the client cannot connect.
        """
        self.url = url.rstrip("/")
        self._answers, self._broken = True, False
        try:
            self._connect()
        except (ImportError, ValueError):
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        found: list[Bytes | None] = [np.empty(0, np.uint8)] * len(ranges)
        for blocks in _batches(_join(ranges), self.batch_bytes):
            for block, data in zip(blocks, self._fetch(blocks), strict=True):
                wanted = sum(ranges[number][2] - ranges[number][1] for number in block.ranges)
                for number in block.ranges:
                    _, start, stop = ranges[number]
                    part = None if data is None else data[start - block.start : stop - block.start]
                    # What lies between the ranges shall not stay in memory with them.
                    copied = part is not None and wanted < block.stop - block.start
                    found[number] = part.copy() if part is not None and copied else part
        return found

    def size(self, name: str) -> int | None:
        def ask() -> int:
            self.system.invalidate_cache()
            return int(self.system.size(self._path(name)))

        try:
            return self._call(ask)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        path, data = self._path(name), b"".join(bytes(piece) for piece in content)
        try:
            self._call(lambda: self.system.pipe_file(path, data))
        except FileNotFoundError:
            # A place that has real folders, as SFTP does.
            parent = path.rpartition("/")[0]
            self._call(lambda: self.system.makedirs(parent, exist_ok=True))
            self._call(lambda: self.system.pipe_file(path, data))

    def move(self, old: str, new: str) -> None:
        before, after = self._path(old), self._path(new)
        if not self.system.async_impl:
            self._call(lambda: self.system.mv(before, after))
            return
        # In steps that are asked for again one by one: objects cannot be renamed.
        self._call(lambda: self.system.cp_file(before, after))
        self._call(lambda: self.system.rm([before]))

    def delete(self, *names: str) -> None:
        paths = [self._path(name) for name in names]
        try:
            if paths:
                self._call(lambda: self.system.rm(paths))
        except FileNotFoundError:
            for name in names if len(names) > 1 else ():
                self.delete(name)  # one that is gone may have kept the others

    def delete_folder(self, name: str) -> None:
        with suppress(FileNotFoundError):
            if not self.system.async_impl:
                self._call(lambda: self.system.rm(self._path(name), recursive=True))
            else:
                self.delete(*self.walk(name))

    def children(self, folder: str) -> dict[str, int | None]:
        def ask() -> dict[str, int | None]:
            self.system.invalidate_cache()
            try:
                entries = self.system.ls(self._path(folder), detail=True)
            except NotADirectoryError:
                return {}
            return {
                entry["name"].rstrip("/").rpartition("/")[2]: (
                    None if entry["type"] == "directory" else int(entry["size"])
                )
                for entry in sorted(entries, key=lambda entry: str(entry["name"]))
            }

        try:
            return self._call(ask)
        except FileNotFoundError:
            return {}

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        # One recursive listing: a request for every folder would take long.
        found: dict[str, dict[str, int | None]] = {}
        for path, size in self.walk(folder).items():
            below = path.removeprefix(f"{folder}/").split("/")
            if len(below) > 1:
                found.setdefault(below[0], {})[below[1]] = size if len(below) == 2 else None
        return found

    def walk(self, folder: str = "") -> dict[str, int]:
        root = self.root.lstrip("/") + "/"

        def ask() -> dict[str, int]:
            self.system.invalidate_cache()
            found = self.system.find(self._path(folder), detail=True)
            return {
                path.lstrip("/").removeprefix(root): int(entry["size"])
                for path, entry in sorted(found.items())
            }

        return self._call(ask)

    def free_bytes(self) -> int | None:
        return None

    def _connect(self, fresh: bool = False) -> None:
        """Take a client for this process: its connections do not survive a fork."""
        options: dict[str, Any] = {"skip_instance_cache": True} if fresh else {}
        if self.url.partition("://")[0] in ("s3", "s3a"):
            options["config_kwargs"] = _s3_settings()
        self.system: fsspec.AbstractFileSystem
        self.system, root = url_to_fs(self.url, **options)
        self._pid, self._broken = os.getpid(), False
        if options.get("config_kwargs", {}).get("retries") == NO_RETRIES:
            self.system.retries = 1  # s3fs has no argument for it
        self.root = root.rstrip("/")

    def _fetch(self, blocks: Sequence["_Block"]) -> list[Bytes | None]:
        """Return what blocks hold, shorter where a file ends, None where it is not there."""
        found: dict[_Block, Bytes | None] = {}

        def ask() -> None:
            left = [block for block in blocks if block not in found]
            results = self.system.cat_ranges(
                [self._path(block.file) for block in left],
                [block.start for block in left],
                [block.stop for block in left],
                on_error="return",
            )
            failed: list[BaseException] = []
            for block, result in zip(left, results, strict=True):
                if isinstance(result, FileNotFoundError):
                    found[block] = None
                elif not isinstance(result, BaseException):
                    found[block] = np.frombuffer(result, np.uint8)
                elif _refuses_range(result) and not self._holds(block):
                    found[block] = np.empty(0, np.uint8)
                else:
                    failed.append(result)
            if failed:
                raise failed[0]

        self._call(ask)
        return [found[block] for block in blocks]

    def _holds(self, block: "_Block") -> bool:
        """Return whether a file reaches into a block; object stores refuse ranges past ends."""
        self.system.invalidate_cache()
        return bool(block.start < self.system.size(self._path(block.file)))

    def _call(self, ask: Callable[[], T]) -> T:
        """Return what a client answers; it is asked again while it does not, but not for long.

        Where the last request found nobody, this one is not repeated: an outage shall cost little.

        Raises:
            FileNotFoundError: what was asked for is not there.
            StoreUnreachable: anything else went wrong.
        """
        began = time.monotonic()
        waits: Iterator[float] = iter(WAITS_S if self._answers else ())
        while True:
            try:
                if self._broken or self._pid != os.getpid():
                    self._connect(fresh=self._broken)
                answer = ask()
            except (FileNotFoundError, MemoryError):
                self._answers = True
                raise
            except (Exception, asyncio.CancelledError) as error:
                # Its one connection does not come back by itself.
                self._broken = not self.system.async_impl
                wait = None if isinstance(error, PermissionError) else next(waits, None)
                if wait is None or time.monotonic() - began + wait > RETRY_S:
                    self._answers = False
                    raise self._unreachable(error) from error
                time.sleep(wait)
                continue
            self._answers = True
            return answer

    def _unreachable(self, error: BaseException) -> StoreUnreachable:
        """Return the error that callers see, in one line whatever the client says."""
        try:
            cause = " ".join(str(error).split())
        except Exception:
            cause = ""  # its kind has to do
        if len(cause) > LONGEST_CAUSE:
            cause = cause[: LONGEST_CAUSE - 1] + "…"
        kind = type(error).__name__
        return StoreUnreachable(f"{self.url} cannot be reached ({kind}{': ' * bool(cause)}{cause})")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


NO_RETRIES = {"total_max_attempts": 1}


def _s3_settings() -> dict[str, Any]:
    """Return botocore's settings: those of fsspec's configuration, then ours.

    Its own retries stay where the user asked for some: there, or in AWS's configuration.
    """
    settings: dict[str, Any] = {"connect_timeout": CONNECT_S, "read_timeout": ANSWER_S}
    with suppress(ImportError):  # fsspec says what to install
        from botocore.session import Session

        if not Session().get_config_variable("max_attempts"):
            settings["retries"] = NO_RETRIES
    for scheme in ("s3", "s3a"):
        settings |= fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
    return settings


def _refuses_range(error: BaseException) -> bool:
    """Return whether a client may have raised this for a range past a file's end (HTTP 416)."""
    chain: BaseException | None = error
    while chain is not None:
        text = f"{chain!r} {chain} {getattr(chain, 'response', '')}".lower()
        if any(sign in text for sign in ("416", "invalidrange", "satisfiable")):
            return True
        chain = chain.__cause__
    return False


class _Block(NamedTuple):
    """Bytes of a file that one request fetches, and the numbers of the ranges in them."""

    file: str
    start: int
    stop: int
    ranges: tuple[int, ...]


def _join(ranges: Sequence[Range]) -> list[_Block]:
    """Join ranges of a file that touch, overlap or nearly do; empty ones need no request."""
    blocks: list[_Block] = []
    members: list[int] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        file, start, stop = ranges[number]
        if start >= stop:
            continue
        last = blocks[-1] if blocks else None
        if (
            last is not None
            and last.file == file
            and start <= last.stop + GAP_BYTES
            and max(stop, last.stop) - last.start <= JOINED_BYTES
        ):
            members.append(number)
            blocks[-1] = last._replace(stop=max(stop, last.stop))
        else:
            if last is not None:
                blocks[-1] = last._replace(ranges=tuple(members))
            members = [number]
            blocks.append(_Block(file, start, stop, ()))
    if blocks:
        blocks[-1] = blocks[-1]._replace(ranges=tuple(members))
    return blocks


def _batches(blocks: Sequence[_Block], limit: int) -> Iterator[Sequence[_Block]]:
    """Yield what is asked for at a time: so many requests and bytes, one block at least."""
    batch: list[_Block] = []
    total, most = 0, FIRST_REQUESTS
    for block in blocks:
        size = block.stop - block.start
        if batch and (len(batch) >= most or total + size > limit):
            yield batch
            batch, total, most = [], 0, REQUESTS
        batch.append(block)
        total += size
    if batch:
        yield batch
