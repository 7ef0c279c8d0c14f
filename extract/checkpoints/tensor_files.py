"""Reading the tensors of a file or folder of weights, without running any code in it."""

import difflib
import hashlib
import io
import json
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from configs.messages import plain_line
from extract.checkpoints.beside import join_shared
from extract.checkpoints.hub import FOLDER_FILES, SHORT_NAMES, locate_named
from extract.checkpoints.wrappers import unwrap

# Where a pickle's tensors are. OpenTAD evaluates averaged weights where it has them; TAdaConv's
# project, whose files have the last two, evaluates them, too.
PARTS = (
    *("state_dict_ema", "state_dict", "module", "model", "model_ema_state", "model_state"),
    "model_state_dict",
)
OURS = "palindrome"  # the beginning of `format` in files that this project writes

# Objects that programs store next to the weights: records of the training run. They are replaced by
# stand-ins that do nothing, so none of their code is needed or run.
HARMLESS = (
    *("mmengine.", "mmcv.", "numpy."),
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib.Path", "builtins.getattr"),
    # Lightning's hyperparameters and callbacks
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "typing.Any"),
    *("yacs.", "easydict.", "addict.", "datetime.", "collections.defaultdict"),
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "int", "float", "str", "object")),
)
FILLED = ("Dict", "dict", "CfgNode")  # ends of names of dicts, which are filled with items
KNOWN_TO_TORCH = ("torch.", "collections.", "_codecs.encode", "builtins.set", "builtins.bytearray")


@dataclass(frozen=True)
class TensorFile:
    """The content of a file of weights.

    Attributes:
        tensors: by the file's own names, without the prefixes of wrappers.
        files: those with the tensors: one, or the shards of a folder.
        part: the entry of a pickle that has the tensors, or an empty string.
        classes: names in the order of the logits, where the file has them.
        settings: of a Hugging Face `config.json`.
        name: of the file or folder; with the commit if it is on the Hub.
    """

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    part: str = ""
    classes: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(path.stat().st_size for path in self.files)


class Inert:
    """A stand-in for an object that is not needed: accepts anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of every file, in hex, by its name."""
    sums = {}
    for path in files:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def read_tensors(path: str | Path) -> TensorFile:
    """Return the content of a safetensors file, a torch checkpoint or a Hugging Face folder.

    No code in it is run. It may be on the Hugging Face Hub (see `extract.checkpoints.hub`).

    Tensors stay in the file until they are used, except in files older than torch 1.6.

    Raises:
        ValueError: it is missing, damaged, would run code or holds no tensors.
    """
    path, name = locate_named(path)
    if path.is_dir():
        content = _read_folder(path)
    elif path.is_file():
        content = _read_file(path)
    else:
        near = difflib.get_close_matches(name, SHORT_NAMES, n=1, cutoff=0.8)
        raise ValueError(
            f"no checkpoint at {path}; "
            + (f"did you mean {near[0]}?" if near else "check the path")
            + " (docs/weights.md says where weights are published; "
            f"{', '.join(SHORT_NAMES)} are downloaded)"
        )
    if not content.tensors:
        raise ValueError(
            f"{path} holds no tensors, neither at its top level nor under {', '.join(PARTS)}"
        )
    return replace(content, tensors=unwrap(content.tensors), name=name)


def _read_file(path: Path) -> TensorFile:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; copy it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if head[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is damaged or not a checkpoint: the end of its archive is missing; "
            "copy it again"
        )
    if head[:2] in (b"PK", b"\x80\x02"):
        return _read_pickle(path)
    try:
        if b"\0" in head:
            raise ValueError("no text has zero bytes")
        first = head.decode().splitlines()[0][:60]
    except ValueError:
        raise ValueError(
            f"{path} is damaged or holds no weights: it is neither a safetensors file nor a torch "
            "checkpoint"
        ) from None
    raise ValueError(
        f"{path} is a text that begins with '{first}', not weights; is it the page of a download, "
        "or a Git LFS pointer?"
    )


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except Exception as error:
        cause = plain_line(str(error))
        raise ValueError(f"{path} is damaged: {cause}; copy it again") from error
    classes = tuple(json.loads(about["classes"])) if "classes" in about else None
    return TensorFile(tensors, (path,), classes=classes)


def _read_pickle(path: Path) -> TensorFile:
    names: set[str] = set()
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped and (damaged := zipfile.ZipFile(path).testzip()):  # torch verifies no checksums
            raise ValueError(f"its part {damaged} has a wrong checksum")
        names = set(_referenced_objects(path, mapped))
        harmless = sorted(name for name in names if name.startswith(HARMLESS))
        # A stand-in for a kind of dict is filled with items, which only real dicts may be.
        stands_in = [(_stand_in(name), name) for name in harmless]
        with torch.serialization.safe_globals(stands_in):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        strange = sorted(n for n in names if not n.startswith((*HARMLESS, *KNOWN_TO_TORCH)))
        if strange:
            raise ValueError(
                f"{path} would run code to be read ({', '.join(strange)}), so it is refused; ask "
                "whoever made it for the bare tensors"
            ) from error
        raise ValueError(
            f"{path} is damaged or not a checkpoint: {describe_failure(error)}"
        ) from error
    if not isinstance(content, dict):
        return TensorFile({}, (path,))
    if str(content.get("format")).startswith(OURS):
        join_shared(path, content)
        listed = content.get("classes")
        classes = tuple(map(str, listed)) if isinstance(listed, list | tuple) else ()
        return TensorFile(_tensors(content.get("ema")), (path,), "ema", classes)
    for part in PARTS:
        if tensors := _tensors(content.get(part)):
            return TensorFile(tensors, (path,), part)
    return TensorFile(_tensors(content), (path,))


def _tensors(part: object) -> dict[str, Tensor]:
    if not isinstance(part, dict):
        return {}
    return {str(name): t.detach() for name, t in part.items() if isinstance(t, Tensor)}


def _stand_in(name: str) -> Any:
    """Return what is called in place of a harmless class or function."""
    if name == "collections.defaultdict":
        return lambda *_: OrderedDict()  # it is given what makes its values
    return OrderedDict if name.endswith(FILLED) else Inert


def describe_failure(error: Exception) -> str:
    """Return in a phrase why a file could not be unpickled, without torch's advice on running it.

    Torch's own text is a page, with colours, that tells how to trust the file.
    """
    text = str(error)
    if found := re.search(r"(?:GLOBAL|got <class|got)\s+'?([A-Za-z_][\w.]*\.\w+)", text):
        return f"it holds objects of {found[1]}, not only tensors"
    if "weights_only" in text or "Weights only" in text:
        *_, text = re.split(r"WeightsUnpickler error:|\n\n", text.strip())
        text = "it holds more than tensors" if "weights_only" in text else text
    said = isinstance(error, ValueError | TypeError | OSError | UnpicklingError) and text.strip()
    return plain_line(text if said else f"{type(error).__name__}: {text}", 140)


def _referenced_objects(path: Path, zipped: bool) -> Iterator[str]:
    """Yield the full names of the functions and classes that a checkpoint refers to."""
    with path.open("rb") as file:
        pickles: list[IO[bytes]] = [file] * 4  # magic number, protocol, system, content
        if zipped:
            with zipfile.ZipFile(file) as archive:
                name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
                if name is None:
                    raise ValueError("an archive without a data.pkl")
                pickles = [io.BytesIO(archive.read(name))]
        for pickle in pickles:
            for operation, argument, _ in pickletools.genops(pickle):
                if operation.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    module, name = NAME_MAPPING.get((module, name), (module, name))
                    yield f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _read_folder(path: Path) -> TensorFile:
    """Return what a Hugging Face folder holds: `config.json` and one file of tensors, or shards."""
    named = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if named is None:
        raise ValueError(f"{path} is a folder without weights: none of {', '.join(FOLDER_FILES)}")
    config = path / "config.json"
    settings = _read_json(config) if config.is_file() else {}
    if named.suffix != ".json":
        content = _read_file(named)
        return TensorFile(content.tensors, content.files, content.part, settings=settings)
    places = _read_json(named).get("weight_map", {})
    shards = [path / name for name in sorted(set(places.values()))]
    missing = [shard.name for shard in shards if shard.parent != path or not shard.is_file()]
    if missing:
        raise ValueError(f"{named} names {', '.join(missing)}, which {path} does not have")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _read_file(shard).tensors
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise ValueError(f"{named} names tensors that no shard has: {', '.join(lacking[:5])}")
    return TensorFile(tensors, tuple(shards), settings=settings)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
