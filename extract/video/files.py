"""Video files in a folder, by their suffixes and names."""

from pathlib import Path

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def video_files(folder: Path, setting: str) -> dict[str, Path]:
    """Return the video files of a folder by name without extension, in order.

    Raises:
        ValueError: two of them have the same name; `setting` is the setting with the folder.
    """
    files = files_by_name(folder)
    for paths in files.values():
        if len(paths) > 1:
            raise ValueError(f"{setting}: {paths[0]} and {paths[1]} share a name; remove one")
    return {name: path for name, (path,) in files.items()}


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return all video files of a folder by name without extension, in order."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            files.setdefault(path.stem, []).append(path)
    return files
