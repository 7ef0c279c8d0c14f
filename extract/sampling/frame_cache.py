"""Frames of videos that every epoch asks for again: decoded once, kept small in files.

A folder has one `.npy` file per video and kind of `Shrink`: uint8 [n, h, w, 3], the frames that any
window of the experiment can ask for. Its name hashes the video and the settings it depends on.

After the array stands an index, which numpy does not see: a CRC-32C per frame, uint32 [n]; height
and width, uint32; and a CRC-32C of these, of the file's name and of the libraries that made it.
Every frame is checked whenever it is read, so that nothing is read for the check alone, and damage
that comes later is noticed, too. (Of the time of a training sample that is 0.3 % with the published
augmentation, 5 % with crop and flip alone.) A file that is damaged, that other versions of the
libraries made, or that is older than checksums is made again.
"""

import io
import math
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain as joined
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache.address import VideoInfo
from cache.code_digest import code_digest, versions
from cache.fingerprint import HEX, chain_fingerprints
from cache.storage.codec import checksum
from configs.atomic import atomic_path
from configs.messages import format_bytes
from configs.progress import ProgressBar
from extract.identity.computing import COMPUTES_NOTHING, LIBRARIES
from extract.sampling.transforms import Shrink, Transform, shrink_frames
from extract.sampling.window_frames import (
    assign_to_windows,
    check_unchanged,
    open_unchanged,
    resized_chunks,
    wanted_frames,
)
from extract.sampling.windows import Window, sampled_frames
from extract.settings.sampling import SamplingConfig
from extract.video.indexing import video_index
from extract.video.reader import CHUNK, VideoError, VideoReader

VERSION = 2  # of the files' names and layout
RESERVE = 20 * 10**9  # most bytes of the disk that stay free: for checkpoints, which matter more
RESERVE_SHARE = 0.05  # of a disk, where that is less
ABANDONED_S = 3600  # no writer pauses for so long
HEIGHT_WIDTH, CRC = struct.Struct("<II"), struct.Struct("<I")
Wanted = tuple[Path, VideoInfo, Shrink]


class FrameCache:
    """The frames of an experiment's videos, in a folder that many processes use at once.

    Nothing is evicted: every epoch wants every video, so whatever came first is as good as another.

    Args:
        folder: exists.
        limit_gb: the most that all files in it may take together; None leaves that to the disk.
    """

    def __init__(
        self, folder: Path, sampling: SamplingConfig, limit_gb: float | None = None
    ) -> None:
        self.folder, self.sampling, self.limit_gb = folder, sampling, limit_gb
        self._given_up: set[Path] = set()  # not made by this process any more
        self._discarded: set[Path] = set()
        self._warned: set[str] = set()
        # One count for a process and its loader workers.
        self._damaged = torch.zeros(1, dtype=torch.int64).share_memory_()

    def frames_of(
        self,
        path: Path,
        video: VideoInfo,
        windows: Sequence[Window],
        transform: Transform,
        seed: int = 0,
    ) -> Iterator[list[Tensor]]:
        """Yield what `window_frames` does, to the bit, decoding only if need be.

        Args:
            path: of the video; opened only where its frames are not here yet, or damaged.
            video: what it held when the run began.

        Raises:
            VideoError: the video cannot be read, or is another one now.
        """
        chunks = self._resized_chunks(path, video, wanted_frames(windows), transform.shrink)
        return assign_to_windows(windows, chunks, transform, seed)

    def file(self, video: VideoInfo, to: Shrink) -> Path:
        """Return where a video's frames are, or would be."""
        settings = {"frames": VERSION, "video": video.digest, **asdict(to)}
        numbers = torch.from_numpy(sampled_frames(video, self.sampling))
        (name,) = chain_fingerprints(settings, [{"numbers": numbers}])
        return self.folder / f"{name}.npy"

    def forecast(self, wanted: Iterable[Wanted]) -> str:
        """Return in one line what these videos need, what of it is there and what fits.

        Files that cannot be used are removed, as far as they can be; frames are not read for it.
        """
        files = {self.file(video, to): (path, video, to) for path, video, to in wanted}
        there = more = unusable = 0
        bar = ProgressBar(
            files.items(), desc="measuring frames", unit="video", delay=2, leave=False
        )
        for file, (path, video, to) in bar:
            count = len(sampled_frames(video, self.sampling))
            try:
                with _open_frames(file, count, to).file as kept:
                    there += os.fstat(kept.fileno()).st_size
                continue
            except _UnusableError as found:
                unusable += 1
                with suppress(OSError):
                    _remove(file, found.status)
            except OSError:
                pass
            more += kept_bytes(path, count, to)
        room = self.room()
        outcome = "the rest fits" if more else "nothing is missing"
        if more > room:
            outcome = f"only {format_bytes(max(room, 0))} more fit: other videos are always decoded"
        limit = "" if self.limit_gb is None else f"data.frame_cache_gb is {self.limit_gb:g}, "
        disk = shutil.disk_usage(self.folder)
        anew = f"; {_describe_unusable(unusable)}" if unusable else ""
        return (
            f"frame cache {self.folder}: {len(files)} videos need {format_bytes(there + more)}, "
            f"{format_bytes(there)} of it is there; {limit}the disk has {format_bytes(disk.free)} "
            f"free, of which {format_bytes(_reserve(disk.total))} stay free; {outcome}{anew}"
        )

    def room(self) -> int:
        """Return how many bytes more may be written; below 0 if there are too many already."""
        disk = shutil.disk_usage(self.folder)
        room = disk.free - _reserve(disk.total)
        if self.limit_gb is not None:
            room = min(room, int(self.limit_gb * 1e9) - self._used())
        return room

    def tidy(self) -> None:
        """Remove the files of killed writers."""
        for path in self.folder.glob(f"{'?' * HEX}.*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _used(self) -> int:
        """Return the bytes of all files in the folder."""
        used = 0
        for path in self.folder.iterdir():
            with suppress(OSError):  # it may be renamed at this moment
                used += path.stat().st_size
        return used

    def _resized_chunks(
        self, path: Path, video: VideoInfo, wanted: NDArray[np.int64], to: Shrink
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield what the function of this name does, from the video's file of frames if possible.

        In the same chunks: sums over other numbers of frames might round otherwise.
        """
        file, numbers = self.file(video, to), sampled_frames(video, self.sampling)
        rows = np.searchsorted(numbers, wanted)
        assert np.array_equal(numbers[rows], wanted)
        start, damaged = 0, None  # `start`: what was given out, whole chunks
        while (kept := self._open_or_make(file, path, video, to, damaged)) is not None:
            try:
                with kept.file:
                    while start < len(rows):
                        yield kept.read(rows[start : start + CHUNK])
                        start += CHUNK
                return
            except _UnusableError as found:
                damaged = found
        reader = open_unchanged(path, video.frames, video.digest)
        for chunk in resized_chunks(reader, wanted[start:], to):
            check_unchanged(path, video.digest)  # validation stores features of it for good
            yield chunk

    def _open_or_make(
        self,
        file: Path,
        path: Path,
        video: VideoInfo,
        to: Shrink,
        damaged: "_UnusableError | None",
    ) -> "_Frames | None":
        """Open a video's file of frames, made if need be; return None where that is impossible.

        Args:
            damaged: what was wrong with the file that was opened before.
        """
        try:
            if damaged is not None:
                self._discard(file, damaged)
            found = self._open(file, video, to)
            if found is None and file not in self._given_up:
                self._make(file, path, video, to)
                found = self._open(file, video, to)
        except OSError as error:
            self._given_up.add(file)
            self._warn_once(
                f"{self.folder}: {error.strerror or error}; videos whose frames cannot be kept "
                "there are decoded in every epoch"
            )
            return None
        return found

    def _open(self, file: Path, video: VideoInfo, to: Shrink) -> "_Frames | None":
        """Open a file of frames; return None if it is not there, or was not right and is removed.

        Raises:
            OSError: it cannot be opened, or not removed.
        """
        try:
            return _open_frames(file, len(sampled_frames(video, self.sampling)), to)
        except FileNotFoundError:
            return None
        except _UnusableError as found:
            self._discard(file, found)
            return None

    def _discard(self, file: Path, found: "_UnusableError") -> None:
        """Count, report and remove a file that cannot be used.

        Raises:
            OSError: it cannot be removed.
        """
        if file in self._discarded:  # damaged again, or it cannot be removed
            self._given_up.add(file)
        else:
            self._discarded.add(file)
            self._damaged += 1
            count = int(self._damaged)
            if count & (count - 1) == 0:  # a line at 1, 2, 4, 8 … files, however many there are
                of = f"{_describe_unusable(count)} ({file.name} is the last)"
                self._warn_once(f"{self.folder}: {of}")
        _remove(file, found.status)

    def _make(self, file: Path, path: Path, video: VideoInfo, to: Shrink) -> None:
        """Decode a video and keep its frames; give the file up where there is no room for it.

        Raises:
            VideoError: the video cannot be read at all, or is another one now.
            OSError: the file cannot be written.
        """
        reader = open_unchanged(path, video.frames, video.digest)
        numbers = sampled_frames(video, self.sampling)
        chunks = resized_chunks(reader, numbers, to)
        try:
            first = next(chunks)
            shape = (len(numbers), *first.shape[1:])
            with atomic_path(file) as aside:
                if not self._write(aside, file.name, shape, joined([first], chunks)):
                    raise _NoRoomError
                check_unchanged(path, video.digest)
        except (VideoError, _NoRoomError):
            self._given_up.add(file)  # the window that is asked for may still be read

    def _write(
        self, aside: Path, name: str, shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]
    ) -> bool:
        """Write frames as they come; return False if they have no room or change their size.

        Args:
            name: that the file will have.
        """
        size = _file_bytes(shape)
        if size > self.room():
            return False
        with open(aside, "wb") as file:
            file.write(_header(shape))
            file.flush()
            # Taken at once: a full disk is met before the work, and others see what is left.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            if self.room() < 0:  # others were as quick
                return False
            checksums = []
            for chunk in chunks:
                if chunk.shape[1:] != shape[1:]:
                    return False
                checksums += [checksum(frame) for frame in chunk]
                file.write(chunk.data)
            file.write(_index(name, shape, np.array(checksums, "<u4")))
            file.flush()
            os.fsync(file.fileno())  # a name that survives a power cut must not stand for less
        return True

    def _warn_once(self, cause: str) -> None:
        """Warn once in this process."""
        if cause not in self._warned:
            self._warned.add(cause)
            tqdm.write(f"warning: {cause}")


class _NoRoomError(Exception):
    """A video's frames cannot be kept."""


class _UnusableError(Exception):
    """A file of frames is damaged, or was made by other versions.

    Args:
        status: of the file when it was opened.
    """

    def __init__(self, status: os.stat_result) -> None:
        super().__init__()
        self.status = status


@dataclass(frozen=True)
class _Frames:
    """An open file of frames whose index is right.

    Args:
        status: of the file when it was opened.
        shape: n, h, w, 3.
        checksums: of every frame, uint32 [n].
    """

    file: io.BufferedReader
    status: os.stat_result
    shape: tuple[int, ...]
    checksums: NDArray[np.uint32]

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return frames [rows, h, w, 3].

        Read, not mapped into memory: there a bad sector or a truncated file would end the process,
        and a frame could change after its check.

        Raises:
            _UnusableError: one of them is not what was written.
        """
        frames = np.empty((len(rows), *self.shape[1:]), np.uint8)
        start, size = len(_header(self.shape)), math.prod(self.shape[1:])
        for frame, row in zip(frames, rows.tolist(), strict=True):
            try:
                self.file.seek(start + row * size)
                self.file.readinto(frame.data)
            except OSError as error:  # a bad sector
                raise _UnusableError(self.status) from error
            if checksum(frame) != self.checksums[row]:
                raise _UnusableError(self.status)
        return frames


def _open_frames(path: Path, count: int, to: Shrink) -> _Frames:
    """Open a file of frames [count, h, w, 3].

    Raises:
        OSError: it cannot be opened.
        _UnusableError: its size or its index is not right.
    """
    file = open(path, "rb")  # noqa: SIM115 (it stays open)
    status = os.fstat(file.fileno())
    try:
        file.seek(-(HEIGHT_WIDTH.size + CRC.size), os.SEEK_END)
        shape = (count, *HEIGHT_WIDTH.unpack(file.read(HEIGHT_WIDTH.size)), 3)
        if _fits(shape, to) and status.st_size == _file_bytes(shape):
            file.seek(0)
            header = file.read(len(_header(shape)))
            file.seek(math.prod(shape), os.SEEK_CUR)
            index = file.read()
            checksums = np.frombuffer(index, "<u4", count)
            if header == _header(shape) and index == _index(path.name, shape, checksums):
                return _Frames(file, status, shape, checksums)
    except (OSError, ValueError, struct.error):  # it is too short, or has a bad sector
        pass
    file.close()
    raise _UnusableError(status)


def _remove(file: Path, status: os.stat_result) -> None:
    """Remove a file unless another process has replaced it."""
    with suppress(FileNotFoundError):
        if os.path.samestat(file.stat(), status):
            file.unlink()


def _header(shape: tuple[int, ...]) -> bytes:
    """Return what a `.npy` file of uint8 begins with."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    return file.getvalue()


def _index(name: str, shape: tuple[int, ...], checksums: NDArray[np.uint32]) -> bytes:
    """Return what stands after the frames."""
    index = checksums.tobytes() + HEIGHT_WIDTH.pack(*shape[1:3])
    return index + CRC.pack(checksum(f"{name} {_made_by()} ".encode() + index))


@lru_cache
def _made_by() -> str:
    """Return the code and the libraries that decode and resize, as they are now."""
    code = code_digest([VideoReader, resized_chunks], COMPUTES_NOTHING)
    return " ".join([code.whole, *(f"{name} {v}" for name, v in versions(LIBRARIES).items())])


def _file_bytes(shape: tuple[int, ...]) -> int:
    """Return the size of a file of frames."""
    index = shape[0] * CRC.size + HEIGHT_WIDTH.size + CRC.size
    return len(_header(shape)) + math.prod(shape) + index


def _fits(shape: tuple[int, ...], to: Shrink) -> bool:
    """Return whether frames [n, h, w, 3] have the size that is asked for."""
    short, long = sorted(shape[1:3])
    return short == to.short_side and (long == short or not to.square)


def _describe_unusable(count: int) -> str:
    """Return what became of files of frames that cannot be used."""
    files = "1 file of frames was" if count == 1 else f"{count} files of frames were"
    return f"{files} damaged or of other versions; what is needed of them is decoded again"


def _reserve(total: int) -> int:
    """Return how many bytes of a disk of so many stay free."""
    return min(RESERVE, int(RESERVE_SHARE * total))


def kept_bytes(path: Path, count: int, to: Shrink) -> int:
    """Return the size of a file of `count` frames of a video; 0 if the video cannot be read."""
    if to.square:
        return _file_bytes((count, to.short_side, to.short_side, 3))
    try:
        height, width = video_index(path).upright_size
    except VideoError:
        return 0
    return _file_bytes((count, *_small_shape(height, width, to)))


@lru_cache
def _small_shape(height: int, width: int, to: Shrink) -> tuple[int, ...]:
    return shrink_frames(np.zeros((1, height, width, 3), np.uint8), to).shape[1:]
