"""Video files in a folder, by their suffixes or their content, and by name."""

from collections.abc import Iterable
from pathlib import Path

# Of files that hold video as a rule; of others (`gif`, `ogg`, none) the content decides.
VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mkv", ".mov",
    ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt",
    ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
SOUND_SUFFIXES = (".m4a", ".m4b", ".mka", ".oga", ".opus", ".wma")  # of video's containers, too
HEAD_BYTES = 1024
BEGINS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"GIF87a",
    b"GIF89a",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\0\0\x01\xba",  # MPEG program streams
    b"\0\0\x01\xb3",  # MPEG-1 and -2 video
    b"\0\0\0\x01\x67",  # H.264
    b"\0\0\0\x01\x09",
    b"\0\0\0\x01\x40",  # H.265
    b"DKIF",  # IVF
    b"YUV4MPEG2 ",
    b"nut/multimedia container",
    b".RMF",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
)
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp")  # mp4, QuickTime, 3GP
STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1", b"M4A ", b"M4B ")  # pictures and sound
SYNC, PACKET = 0x47, (188, 192, 204)  # of transport streams; 192: with 4 bytes of time before


def video_files(folder: Path, setting: str) -> dict[str, Path]:
    """Return the video files of a folder by name without extension, in order.

    Raises:
        ValueError: two of them have the same name; `setting` is the setting with the folder.
    """
    return {name: only_one(paths, setting) for name, paths in files_by_name(folder).items()}


def only_one(paths: list[Path], setting: str) -> Path:
    """Return the file of a name; ValueError if there are several."""
    if len(paths) > 1:
        raise ValueError(f"{setting}: {paths[0]} and {paths[1]} share a name; remove one")
    return paths[0]


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return all video files of a folder by name without extension, in order.

    A file without a video's suffix counts where no other has its name and its content is a
    video's: `clip.gif` may be the preview of `clip.mp4`.
    """
    files: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        kind = files if path.suffix.lower() in VIDEO_SUFFIXES else others
        kind.setdefault(path.stem, []).append(path)
    for name, paths in others.items():
        if name not in files and (videos := [path for path in paths if has_video_content(path)]):
            files[name] = videos
    return dict(sorted(files.items()))


def describe_no_videos(name: str, folder: Path) -> str:
    """Return the end of a message about a missing video: files of its name that are not videos."""
    found = [path.name for path in _files_of(name, folder)]
    if not found:
        return ""
    return f"; there is {' and '.join(found)}, but its content is not that of any known video"


def _files_of(name: str, folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return ()
    return (path for path in sorted(folder.iterdir()) if path.stem == name and path.is_file())


def is_video(path: Path) -> bool:
    """Return whether a file is a video's by its suffix or, where that says nothing, its content."""
    return path.suffix.lower() in VIDEO_SUFFIXES or has_video_content(path)


def has_video_content(path: Path) -> bool:
    """Return whether a file begins as those of some container of videos do."""
    if path.suffix.lower() in SOUND_SUFFIXES or not path.is_file():  # no named pipe is opened
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return (
        head.startswith(BEGINS)
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[4:8] in BOXES and head[8:12] not in STILL_BRANDS)
        or (head[:4] == b"OggS" and b"\x80theora" in head)
        or any(_is_stream(head, size) for size in PACKET)
    )


def _is_stream(head: bytes, size: int) -> bool:
    """Return whether packets of a transport stream follow each other (ISO 13818-1, 2.4.3.2)."""
    begins = range(4 if size == 192 else 0, len(head) - 3, size)[:4]
    return len(begins) == 4 and all(
        # Without an error; with a payload, other fields or both.
        head[at] == SYNC and not head[at + 1] & 0x80 and head[at + 3] & 0x30
        for at in begins
    )
