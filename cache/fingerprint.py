"""Names for activations and other things that are kept: hashes over all that they depend on.

Hashes of stages are chained,

    H0 = H(settings, tensors of stage 0),  Hk = H(H(k-1), tensors of stage k),

so that a change in stage k changes the names of stage k and of all after it, and of none before.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

HEX = 32  # characters of a fingerprint: 128 bits, which no accident makes equal


def chain_fingerprints(
    settings: Mapping[str, Any], stages: Iterable[Mapping[str, Tensor]]
) -> list[str]:
    """Return the fingerprint after each stage, each over the one before it and its own tensors.

    Args:
        settings: what precedes the first stage; JSON values only.
        stages: tensors by name. Names, dtypes, shapes and every bit of the values count; the order
            of the names and the device do not.
    """
    name = _hash(json.dumps(settings, sort_keys=True, allow_nan=False).encode())
    names = []
    for tensors in stages:
        name = _hash(name.encode(), *(_content(key, tensors[key]) for key in sorted(tensors)))
        names.append(name)
    return names


def fingerprint_of(description: Mapping[str, Any]) -> str:
    """Return the hash of JSON values."""
    return _hash(json.dumps(description, sort_keys=True, allow_nan=False).encode())


def _content(name: str, tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous()
    head = f"{name} {values.dtype} {tuple(values.shape)}".encode()
    # A digest of its own, so that no tensor's bytes can pass for another's name.
    body = hashlib.blake2b(values.reshape(-1).view(torch.uint8).numpy().data)
    return head + body.digest()


def _hash(*parts: bytes) -> str:
    whole = hashlib.blake2b(digest_size=HEX // 2)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()
