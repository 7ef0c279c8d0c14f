"""A dataset's files, recognised by their content: JSON members, CSV columns, lines of text."""

import difflib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from evaluate.datasets import charades, ego4d, epic, own, tables, text
from evaluate.datasets.fields import get_field, read_json, read_text
from evaluate.datasets.records import AnnotationSource, Dataset, Record, subset_in
from evaluate.datasets.tables import CsvTable, column_meaning, parse_table
from evaluate.datasets.tools import boris, cvat, elan, label_studio, via
from evaluate.datasets.tools.safe_xml import read_xml

TABLES = (".csv", ".tsv")
SUFFIXES = (*TABLES, ".json", ".txt", ".xml", ".eaf")

Reader = Callable[[Any, AnnotationSource, Dataset], None]


class _AnnotationFile(NamedTuple):
    path: Path
    content: Any
    read: Reader | None


def read_dataset(path: Path, classes: Path | None = None) -> Dataset:
    """Read an annotation file, or all those of a folder.

    In a folder, all annotation files are read and other files without times are ignored; if there
    are none, those of its sub-folders are read. All must be of one format. Rows and entries that
    cannot be read are the dataset's `problems`.

    Raises:
        ValueError: a file is missing, or of no known format.
    """
    if path.is_dir():
        files, in_folder = _read_folder(path), True
    else:
        files, in_folder = [_read_file(path)], False
    dataset = Dataset()
    for file in files:
        if isinstance(file.content, CsvTable):
            dataset.problems += file.content.problems
        if file.read is not None:
            if isinstance(file.content, CsvTable):
                dataset.warnings += file.content.notes
            with dataset.collect():
                file.read(file.content, _source(file.path, path, in_folder, classes), dataset)
    for file in files:
        if isinstance(file.content, CsvTable) and file.content.columns >= epic.INFO:
            epic.read_info(file.content, dataset)
    dataset.finish()
    return dataset


def annotation_files(path: Path) -> list[Path]:
    """Return the files that `read_dataset` may read, so that callers can notice changes."""
    if not path.is_dir():
        return [path]
    return _candidates(path, "**/*")


def holds_annotations(folder: Path) -> bool:
    """Return whether a folder itself, its sub-folders aside, has an annotation file.

    Raises:
        ValueError: a file in it cannot be read.
    """
    return any(_read_file(path, in_folder=True).read for path in _candidates(folder, "*"))


def _candidates(folder: Path, pattern: str) -> list[Path]:
    files = [file for file in folder.glob(pattern) if file.suffix.lower() in SUFFIXES]
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def _read_folder(folder: Path) -> list[_AnnotationFile]:
    for pattern in ("*", "**/*"):
        files = [_read_file(path, in_folder=True) for path in _candidates(folder, pattern)]
        formats = {file.read: file.path for file in files if file.read}
        if len(formats) > 1:
            some = " and ".join(path.name for path in list(formats.values())[:2])
            raise ValueError(
                f"{folder} has annotations of several formats, as {some}; name the file or the "
                "sub-folder that is to be read."
            )
        if text.read_text_folder in formats:
            for file in files:
                if file.read is None and file.path.suffix.lower() == ".txt":
                    text.check_other_text(file.path, file.content)
        if formats:
            return files
    raise ValueError(
        f"{folder} has no annotations: no JSON with 'database', no CSV with video, start, end and "
        "label, no text with lines `video start end`, and nothing else of what docs/datasets.md "
        "lists."
    )


def _source(path: Path, root: Path, in_folder: bool, classes: Path | None) -> AnnotationSource:
    """Return a file with its subset: from its own name, else from the nearest folder above it."""
    folders = path.relative_to(root).parts[-2::-1] if in_folder else ()
    subsets = (subset_in(name) for name in (path.stem, *folders))
    return AnnotationSource(path, next(filter(None, subsets), None), in_folder, classes)


def _read_file(path: Path, in_folder: bool = False) -> _AnnotationFile:
    """Read a file; one without annotations is ignored in a folder, and an error if named itself."""
    suffix = path.suffix.lower()
    told = (".json", ".xml", ".eaf")
    start = "" if in_folder or suffix in told else read_text(path).lstrip()[:1]
    if suffix == ".json" or start in ("{", "["):
        content = read_json(path)
        return _AnnotationFile(path, content, _json_reader(content, in_folder))
    if suffix in (".xml", ".eaf") or start == "<":
        root = read_xml(path)
        readers: dict[str, Reader] = {cvat.ROOT: cvat.read_cvat, elan.ROOT: elan.read_elan}
        if root.tag not in readers and not in_folder:
            raise ValueError(f"{path}: <{root.tag:.60}> is neither CVAT's XML nor ELAN's.")
        return _AnnotationFile(path, root, readers.get(root.tag))
    if suffix not in TABLES:
        lines = read_text(path).splitlines()
        if text.is_class_file(lines):
            return _AnnotationFile(path, lines, text.read_text_folder)
        if suffix == ".txt":
            with suppress(ValueError):  # spreadsheets' "Unicode text" is a table
                if own.is_own(table := parse_table(path)):
                    return _AnnotationFile(path, table, own.read_own)
            if not in_folder:
                raise ValueError(f"{path}: no line of it is `video start end`; is it another file?")
            return _AnnotationFile(path, lines, None)
    table = parse_table(path)
    return _AnnotationFile(path, table, _table_reader(table, path, in_folder))


def _json_reader(content: Any, in_folder: bool) -> Reader | None:
    if isinstance(content, dict) and isinstance(content.get("videos"), list):
        return ego4d.read_ego4d
    if via.is_via(content):
        return via.read_via
    if label_studio.is_label_studio(content):
        return label_studio.read_label_studio
    has_database = isinstance(content, dict) and "database" in content
    return _read_activitynet if has_database or not in_folder else None


def _table_reader(table: CsvTable, path: Path, in_folder: bool) -> Reader | None:
    for columns, reader in (
        (set(own.COLUMNS), own.read_own),
        (tables.AFSD, tables.read_afsd),
        (epic.SEGMENTS, epic.read_epic),
        (charades.COLUMNS, charades.read_charades),
        (boris.TABULAR, boris.read_boris),
        (boris.OLD_TABULAR, boris.read_boris),
        (boris.AGGREGATED, boris.read_boris),
        (via.COLUMNS, via.read_via_table),
    ):
        if table.columns >= columns:
            return reader
    if own.is_own(table):
        return own.read_own
    timed = any(
        column.startswith(("start", "stop", "end")) or column_meaning(column) in ("start", "end")
        for column in table.columns
    )
    if in_folder and not timed:
        return None  # classes, frame rates, lists of videos
    missing = own.missing_columns(table)
    hint = ""
    if missing == ["end"] and "duration" in table.columns:
        hint = " 'duration' may be the video's or the action's: write start + duration as end."
    slips = difflib.get_close_matches(missing[0], table.columns, n=1) if missing else []
    slip = f" is it {slips[0]!r}?" if len(missing) == 1 and slips else ""
    raise ValueError(
        f"{path}: line 1: column {', '.join(missing)} is missing;{slip} a table of annotations has "
        "the columns video, start, end and label, separated by commas, semicolons or tabs, or "
        f"those of a dataset in docs/datasets.md.{hint}"
    )


def _read_activitynet(content: dict[str, Any], source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos of `{"database": {video: record}}`, as they are.

    ActivityNet's layout is also that of HACS, FineAction and THUMOS-14 of OpenTAD and ActionFormer.
    """
    for name, record in get_field(content, "database", f"{source.path}").items():
        with dataset.collect():
            dataset.whole_video(name, Record(f"{source.path}: video {name!r}", record))
