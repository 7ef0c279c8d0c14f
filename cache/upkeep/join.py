"""Joining of the many small files of descriptions that writers leave; what is unused goes."""

import re
from collections.abc import Callable, Collection

from cache.errors import StoreUnreachable
from cache.format.descriptions import (
    FOLDER,
    EncodedDescription,
    decode_descriptions,
    is_description_file,
    list_folders,
    write_descriptions,
)
from cache.format.index import RETIRED
from cache.storage.base import Files
from cache.store import Store

NAME = re.compile(r"^[0-9a-f]{32,64}-")  # of a file, and of what is left of one
SMALL_BYTES = 2**20  # several files, each smaller, become one


def join_descriptions(
    store: Store, damaged: Collection[str], is_written: Callable[[], bool]
) -> None:
    """Join small files of descriptions, without what is damaged or belongs to no record.

    Args:
        store: that nobody wrote to a moment ago.
        damaged: files that `verify` has named.
        is_written: returns whether another process has begun to write.
    """
    files = store.files
    used = _described_subjects(store)
    unneeded, contents, going = _find_descriptions(files, used, damaged)
    every = [each for file in going for each in contents[file]]
    every.sort(key=lambda each: (each.description.sequence, each.description.key))
    # Of equal ones the last: what a video was called before, it may be called again.
    kept = {(e.description.subject, e.description.hash): e for e in every}
    needed = [each for each in kept.values() if each.description.subject in used]
    if needed:
        try:
            going -= {write_descriptions(files, needed)}
        except StoreUnreachable:
            raise
        except OSError:
            return  # a full disk
    for file in going:
        files.move(file, file + RETIRED)
    if not going and not unneeded:
        return
    # A writer lists descriptions after it has written its lease: later ones do not find these.
    writing = is_written()
    store.refresh()
    newly_used = _described_subjects(store) - used
    for file in going:
        if writing or any(each.description.subject in newly_used for each in contents[file]):
            files.move(file + RETIRED, file)
        else:
            files.delete(file + RETIRED)
    if unneeded and not writing:
        files.delete(*unneeded)
    store.refresh()


def _find_descriptions(
    files: Files, used: set[str], damaged: Collection[str]
) -> tuple[list[str], dict[str, list[EncodedDescription]], set[str]]:
    """Return leftovers, what files of descriptions hold, and which of the files are to go."""
    unneeded: list[str] = []
    sizes: dict[str, int] = {}
    for file, size in list_folders(files).items():
        original, name = file.removesuffix(RETIRED), file.split("/")[1]
        if size is None or not NAME.match(name):
            continue  # not of the store
        if is_description_file(original) and size:
            if file != original:  # by a prune that was killed
                files.move(file, original)
            sizes[original] = size
        elif name.endswith(".part") or not (size or name.split("-")[0] in used):
            unneeded.append(file)
    names = list(sizes)
    read = files.read([(file, 0, size) for file, size in sizes.items()])
    contents: dict[str, list[EncodedDescription]] = {}
    going = set()
    for file, data in zip(names, read, strict=True):
        if data is None:
            continue
        found, wrong = decode_descriptions(files, file, data)
        if wrong and file not in damaged:
            continue  # `verify` is to name it
        contents[file] = found
        unused = any(each.description.subject not in used for each in found)
        if wrong or unused or not file.startswith(FOLDER):
            going.add(file)
    small = {file for file in contents if sizes[file] < SMALL_BYTES}
    return unneeded, contents, going | (small if len(small | going) > 1 else set())


def _described_subjects(store: Store) -> set[str]:
    """Return the digests and fingerprints of records, and videos that took over a name.

    Without these the name would stand for the former video again.
    """
    known, used = store.descriptions, store.index.subjects()
    names = {each.key[1] for subject in used for each in known.by_subject.get(subject, ())}
    return used | {known.videos_by_name[name].digest for name in names - {""}}
