"""Reading of other programs' files of numbers as arrays [T, C]; no code in them is run."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.messages import plain_line, truncated
from extract.checkpoints.tensor_files import describe_failure

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle")
HARMLESS = {  # what pickled arrays of numbers are built with
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _NumbersUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it would run code to be read ({module}.{name})")
        return super().find_class(module, name)


def read_array(path: Path, key: str | None = None) -> NDArray[np.floating]:
    """Return the two-dimensional array of a file, axes as they are.

    Its dtype is its own, if that is a float that torch knows, else the nearest one.

    Axes of length 1 in front of two others are dropped.

    Args:
        key: of the array, if the file has several.

    Raises:
        ValueError: the file is damaged, would run code, or holds no such array of finite numbers.
    """
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty (0 bytes)")
        content = _read_content(path)
    except Exception as error:
        cause = describe_failure(error)
        raise ValueError(f"{path} cannot be read as an array of numbers: {cause}") from error
    array = _to_array(_choose_array(content, path, key), path)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2 and not array.size:
        raise ValueError(f"{path} is empty: its array is {array.shape[0]} x {array.shape[1]}")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        hint = "; it holds Python objects: save them as numbers" if array.dtype.kind == "O" else ""
        raise ValueError(
            f"{path}: expected numbers [T, C] or [C, T], not {array.dtype} {array.shape}{hint}"
        )
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ValueError(f"{path}: {bad:,} of {array.size:,} numbers are not finite")
    if array.dtype.kind != "f":
        return array.astype(np.float32)
    kept = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    return array.astype(kept, copy=False)


def _read_content(path: Path) -> Any:
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(6)
    if suffix in (".npy", ".npz"):  # as numpy, which reads either under both names
        suffix = ".npz" if head.startswith(b"PK") else ".npy"
    match suffix:
        case ".npy" if head != b"\x93NUMPY":
            raise ValueError("it does not begin as numpy's files do")
        case ".npy":
            return _without_objects(lambda: np.load(path, allow_pickle=False))
        case ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return _read_archive(archive)
        case ".pkl" | ".pickle":
            with path.open("rb") as file:
                return _NumbersUnpickler(file).load()
        case _:
            return torch.load(path, map_location="cpu", weights_only=True)


def _read_archive(archive: Any) -> dict[str, Any]:
    """Return an archive's arrays of numbers; those of objects are left out unless all are."""
    found, cause = {}, None
    for name in archive.files:
        try:
            found[name] = _without_objects(partial(archive.__getitem__, name))
        except TypeError as error:
            cause = error
    if cause and not found:
        raise cause
    return found


def _without_objects(load: Callable[[], Any]) -> Any:
    """Return what is loaded; TypeError if it is an array of Python objects, which numpy pickles."""
    try:
        return load()
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise TypeError(
            "its array holds Python objects (dtype object), not numbers; save it as float32"
        ) from error


def _choose_array(content: Any, path: Path, key: str | None) -> Any:
    """Return a file's only array, or the one of a key.

    Raises:
        ValueError: the file has no such array, or several and no key was given.
    """
    if isinstance(content, dict):
        arrays = {str(name): _to_numpy(value) for name, value in content.items()}
        arrays = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.ndim > 1}
        if key is not None and key in arrays:
            return arrays[key]
        if len(arrays) != 1 or key is not None:
            shown = [f"{name} {array.shape}" for name, array in arrays.items()]
            lacking = f", but no '{key}'" if key is not None else ""
            raise ValueError(
                f"{path} holds the arrays {', '.join(truncated(shown)) or '(none)'}{lacking}; "
                "choose one with --key"
            )
        (content,) = arrays.values()
    return content


def _to_array(content: Any, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(_to_numpy(content))
    except (TypeError, ValueError) as error:  # rows of several lengths, sparse tensors
        cause = plain_line(str(error))
        raise ValueError(f"{path}: expected numbers [T, C] or [C, T]: {cause}") from error


def _to_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value
