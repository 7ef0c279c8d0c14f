"""Frames of videos that every epoch asks for again: decoded once, kept small in files.

A folder has one `.npy` file per video and kind of `Shrink`: uint8 [n, h, w, 3], the frames that any
window of the experiment can ask for. Its name hashes all that it depends on, so that a file is true
or not there. Files are read in place: all processes share the system's copy in memory.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from itertools import chain as joined
from pathlib import Path

import av
import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache.address import VideoInfo
from cache.fingerprint import HEX, chain
from configs.atomic import atomic_path
from extract.sampling.transforms import Shrink, Transform, shrunk
from extract.sampling.window_frames import (
    assign_to_windows,
    check_unchanged,
    known_reader,
    resized_chunks,
    wanted_frames,
    window_frames,
)
from extract.sampling.windows import SamplingConfig, Window, sampled_frames
from extract.video.index import open_video, video_index
from extract.video.reader import CHUNK, VideoError

# Raise the number when the same video comes to give other frames.
VERSION = 1
RESERVE = 20 * 10**9  # bytes of the disk that stay free: for checkpoints, which matter more
ABANDONED_S = 3600  # nobody who still writes a file rests for so long
Wanted = tuple[Path, VideoInfo, Shrink]


class FrameCache:
    """The frames of an experiment's videos, in a folder that many processes use at once.

    Nothing is evicted: every epoch wants every video, so whatever came first is as good as another.

    Args:
        folder: exists.
        limit_gb: that all files in it may have together; None leaves that to the disk.
    """

    def __init__(
        self, folder: Path, sampling: SamplingConfig, limit_gb: float | None = None
    ) -> None:
        self.folder, self.sampling, self.limit_gb = folder, sampling, limit_gb
        self._given_up: set[Path] = set()
        self._warned: set[str] = set()

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
            path: of the video; looked at only where its frames are not here yet.
            video: what it held when the run began.

        Raises:
            VideoError: the video cannot be read, or is another one now.
        """
        kept = self._kept(path, video, transform.shrink)
        if kept is None:
            reader = known_reader(path, video.frames, video.digest)
            return window_frames(reader, windows, transform, seed)
        numbers, wanted = sampled_frames(video, self.sampling), wanted_frames(windows)
        rows = np.searchsorted(numbers, wanted)
        assert np.array_equal(numbers[rows], wanted)
        # In chunks, as from the decoder: sums over other numbers of frames might round otherwise.
        chunks = (kept[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK))
        return assign_to_windows(windows, chunks, transform, seed)

    def file(self, video: VideoInfo, to: Shrink) -> Path:
        """Return where a video's frames are, or would be."""
        settings = {"frames": VERSION, "video": video.digest, **asdict(to)}
        numbers = torch.from_numpy(sampled_frames(video, self.sampling))
        (name,) = chain(settings, [{"numbers": numbers}])
        return self.folder / f"{name}.npy"

    def forecast(self, wanted: Iterable[Wanted]) -> str:
        """Return in one line what these videos need, what of it is there and what fits."""
        files = {self.file(video, to): (path, video, to) for path, video, to in wanted}
        there = more = 0
        bar = tqdm(files.items(), desc="measuring frames", unit="video", delay=2, leave=False)
        for file, (path, video, to) in bar:
            try:
                there += file.stat().st_size
            except OSError:
                more += kept_bytes(path, len(sampled_frames(video, self.sampling)), to)
        room = self.room()
        outcome = "the rest fits" if more else "nothing is missing"
        if more > room:
            outcome = f"only {max(room, 0) / 1e9:,.1f} GB more fit: other videos are always decoded"
        limit = "" if self.limit_gb is None else f"data.frame_cache_gb is {self.limit_gb:g}, "
        free = shutil.disk_usage(self.folder).free
        return (
            f"frame cache {self.folder}: {len(files)} videos need {(there + more) / 1e9:,.1f} GB, "
            f"{there / 1e9:,.1f} GB of it is there; {limit}the disk has {free / 1e9:,.1f} GB free, "
            f"of which {RESERVE / 1e9:g} GB stay free; {outcome}"
        )

    def room(self) -> int:
        """Return how many bytes more may be written; below 0 if there are too many already."""
        room = shutil.disk_usage(self.folder).free - RESERVE
        if self.limit_gb is not None:
            room = min(room, int(self.limit_gb * 1e9) - self._used())
        return room

    def tidy(self) -> None:
        """Remove what killed writers left behind."""
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

    def _kept(self, path: Path, video: VideoInfo, to: Shrink) -> NDArray[np.uint8] | None:
        """Return a video's frames [n, h, w, 3], made if need be; None where that is impossible."""
        file = self.file(video, to)
        try:
            found = self._read(file, video, to)
            if found is None and file not in self._given_up:
                self._make(file, path, video, to)
                found = self._read(file, video, to)
        except OSError as error:
            self._given_up.add(file)
            self._warn_once(
                f"{self.folder}: {error.strerror or error}; videos whose frames cannot be kept "
                "there are decoded in every epoch"
            )
            return None
        return found

    def _read(self, file: Path, video: VideoInfo, to: Shrink) -> NDArray[np.uint8] | None:
        """Return what a file holds; None if it is not there, or not what it should be."""
        count = len(sampled_frames(video, self.sampling))
        try:
            found = npy.open_memmap(file, mode="r")
            if _fits(found, count, to) and file.stat().st_size == found.offset + found.nbytes:
                return found
        except FileNotFoundError:
            return None
        except OSError:
            raise
        except Exception:  # whatever numpy and its parsers say of bytes that are no array
            pass
        self._warn_once(f"{file}: is damaged or no file of frames; it is made anew")
        file.unlink(missing_ok=True)
        return None

    def _make(self, file: Path, path: Path, video: VideoInfo, to: Shrink) -> None:
        """Decode a video and keep its frames; gives the file up where there is no room for it.

        Raises:
            VideoError: the video cannot be read at all, or is another one now.
            OSError: the file cannot be written.
        """
        reader = known_reader(path, video.frames, video.digest)
        numbers = sampled_frames(video, self.sampling)
        chunks = resized_chunks(reader, numbers, to)
        try:
            first = next(chunks)
            shape = (len(numbers), *first.shape[1:])
            with atomic_path(file) as aside:
                if not self._written(aside, shape, joined([first], chunks)):
                    raise _NoRoomError
                check_unchanged(path, video.digest)
        except (VideoError, _NoRoomError):
            self._given_up.add(file)  # the window that is asked for may still be read

    def _written(
        self, aside: Path, shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]
    ) -> bool:
        """Write an array as it comes; False if it has no room or its pictures change their size."""
        size = int(np.prod(shape))
        if size > self.room():
            return False
        with open(aside, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            file.flush()
            # Taken at once: a full disk is met before the work, and others see what is left.
            os.posix_fallocate(file.fileno(), 0, file.tell() + size)
            if self.room() < 0:  # others were as quick
                return False
            for chunk in chunks:
                if chunk.shape[1:] != shape[1:]:
                    return False
                file.write(chunk.data)
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


def _fits(found: NDArray[np.generic], count: int, to: Shrink) -> bool:
    """Return whether an array can be a video's frames [count, h, w, 3]."""
    if found.dtype != np.uint8 or found.ndim != 4 or not found.flags.c_contiguous:
        return False
    n, height, width, channels = found.shape
    short, long = sorted((height, width))
    as_asked = short == to.short_side and (long == short or not to.square)
    return as_asked and (n, channels) == (count, 3)


def kept_bytes(path: Path, count: int, to: Shrink) -> int:
    """Return the bytes of `count` small frames of a video; 0 if the video cannot be asked."""
    if to.square:
        return count * 3 * to.short_side**2
    try:
        with open_video(path) as container:
            context = container.streams.video[0].codec_context
            height, width = context.height, context.width
        turned = video_index(path).rotation % 180 != 0
    except (av.FFmpegError, OSError, VideoError):
        return 0
    return count * _picture_bytes(*((width, height) if turned else (height, width)), to)


@lru_cache
def _picture_bytes(height: int, width: int, to: Shrink) -> int:
    return shrunk(np.zeros((1, height, width, 3), np.uint8), to).nbytes
