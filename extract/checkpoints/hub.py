"""Where weights are: as named, among the files that come with this code, or on the Hub."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from configs.loader import CONFIGS
from configs.messages import plain_line

DETECTOR_FILE = "detector.pt"  # in a folder that `Detector.save_pretrained` has written
FOLDER_FILES = (  # with the tensors of a Hugging Face folder, by preference
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
SHORT_NAMES = {
    f"videomae-{size}": f"hf://MCG-NJU/videomae-{size}-finetuned-kinetics"
    for size in ("small", "base", "large", "huge")
}
NAME = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")


class Located(NamedTuple):
    """A file or folder of weights.

    Attributes:
        path: where it is on this machine; there may be nothing.
        name: what it is called in records; with the commit for files on the Hub.
    """

    path: Path
    name: str


def locate(source: str | Path) -> Path:
    """Return the file or folder that a name of weights means; see `locate_named`."""
    return locate_named(source).path


def locate_named(source: str | Path) -> Located:
    """Return the file or folder that a name of weights means, downloaded if need be.

    Args:
        source: a path; `hf://org/name[@revision][/file]`, from the Hugging Face Hub; one of
            `SHORT_NAMES`; or a path that begins with `configs/`, of a file that comes with this
            code if the working folder has none.

    Raises:
        ValueError: the Hub does not have it, denies access to it, or cannot be reached.
    """
    path, name = Path(source), str(source)
    if path.exists():
        saved = path / DETECTOR_FILE
        return Located(saved if saved.is_file() else path, name)
    if is_on_hub(source):
        return _download(SHORT_NAMES.get(name, re.sub("^hf:/+", "hf://", name)))
    if path.parts[:1] == (CONFIGS.name,) and (here := CONFIGS.parent / path).is_file():
        return Located(here, name)
    return Located(path, name)


def folder_of(checkpoint: Path) -> Path:
    """Return where a checkpoint's results go: its folder; if it is on the Hub, the working one."""
    return Path() if is_on_hub(checkpoint) else checkpoint.parent


def is_on_hub(source: str | Path) -> bool:
    """Return whether a name is one of the Hub's and not a path; pathlib makes one slash of two."""
    return str(source).startswith("hf:/") or str(source) in SHORT_NAMES


@lru_cache  # so that all files that one process reads are of the same commit
def _download(name: str) -> Located:
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not a name on the Hub; write hf://org/name[@revision][/file]")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    if file is not None:
        path = _download_file(name, repo, file, revision)
        return Located(path, _pinned(repo, path, file))
    for candidate in (DETECTOR_FILE, *FOLDER_FILES):
        try:
            path = _download_file(name, repo, candidate, revision)
        except _NotThereError:
            continue
        break
    else:
        listed = ", ".join((DETECTOR_FILE, *FOLDER_FILES))
        if _is_offline():
            raise ValueError(
                f"{name}: HF_HUB_OFFLINE is set, and the Hub's cache has none of {listed} of it: "
                f"unset it to download, or add the name of a file that is there: {name}/FILE"
            )
        raise ValueError(f"{name}: there is none of {listed}; add the name of a file: {name}/FILE")
    pinned, commit = _pinned(repo, path, candidate), _commit_of(path, candidate)
    if candidate == DETECTOR_FILE:
        return Located(path, pinned)
    rest = ["config.json"]
    if candidate.endswith(".index.json"):
        # What else it holds is checked by those who read the folder.
        rest += sorted(set(re.findall(r'"([\w.-]+\.(?:safetensors|bin))"', path.read_text())))
    for other in rest:
        try:
            _download_file(name, repo, other, commit)
        except _NotThereError:
            continue  # who reads the folder says what it lacks
    return Located(path.parent, pinned)


class _NotThereError(ValueError):
    """A repository has no such file or, offline, the cache has not."""


def _download_file(name: str, repo: str, file: str, revision: str | None) -> Path:
    """Return a file of a repository in the Hub's cache.

    Raises:
        _NotThereError, ValueError: it cannot be had; says what to do.
    """
    # Only here: it takes a while to import, and most runs need no Hub.
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name}: its owners must grant you access: ask for it at {constants.ENDPOINT}/{repo}, "
            "then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: {constants.ENDPOINT} has no repository {repo}, or a private one: check the "
            "name; for a private one `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: {repo} has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{name} is not a name on the Hub: {plain_line(str(error))}") from error
    except errors.LocalEntryNotFoundError as error:
        if _is_offline():
            raise _NotThereError(
                f"{name}: HF_HUB_OFFLINE is set, and the Hub's cache, {constants.HF_HUB_CACHE}, "
                f"has no {file} of it: unset it, or copy the cache of a machine that has it"
            ) from error
        raise ValueError(
            f"{name}: cannot be downloaded: {constants.ENDPOINT} does not answer; check the "
            f"network, or give a file on this machine ({constants.HF_HUB_CACHE} is the cache)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise _NotThereError(f"{name}: {repo} has no file {file}") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be downloaded: {plain_line(str(error))}") from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _commit_of(path: Path, file: str) -> str:
    """Return the commit of a file in the cache: `snapshots/<commit>/<file>`."""
    return path.parents[len(Path(file).parts) - 1].name


def _pinned(repo: str, path: Path, file: str) -> str:
    return f"hf://{repo}@{_commit_of(path, file)}/{file}"


def push_folder(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder into a repository of the Hub, which is made if need be; return its URL.

    Raises:
        ValueError: it cannot be uploaded; says why.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        # The name may come back with the user's own in front.
        made: Any = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=os.fspath(folder))
    except errors.HFValidationError as error:
        raise ValueError(f"{repo} is not a name on the Hub: {plain_line(str(error))}") from error
    except OSError as error:
        raise ValueError(
            f"{repo}: cannot be uploaded: {plain_line(str(error))}; `hf auth login` or HF_TOKEN "
            "must give the right to write there"
        ) from error
    return str(made)
