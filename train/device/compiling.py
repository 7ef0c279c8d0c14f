"""What training compiles: networks in place, so that tensors, and checkpoints, keep their names."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from extract.backbone.adapters import Ladder, TemporalAdapter
from extract.backbone.videomae import Block
from train.config import Compile

P = ParamSpec("P")
R = TypeVar("R")

BACKEND = "inductor"
COMPILERS = "g++", "clang++", "gcc", "clang"


def compile_network(network: nn.Module, parts: Compile) -> None:
    """Compile the parts of a network that a run asks for, when each is first called.

    Raises:
        ValueError: it has no such parts, or this machine has no compiler.
    """
    if parts == "off":
        return
    _check_compiler()
    if parts == "all":
        network.compile(backend=BACKEND)
        return
    if not any(isinstance(part, Block) for part in network.modules()):
        raise ValueError(
            "training.compile blocks is for transformers, and this network has no block of one; "
            "set training.compile all or off"
        )
    compile_blocks(network, BACKEND)


def compile_blocks(network: nn.Module, backend: Any) -> None:
    """Compile the transformer's blocks and their adapters; alike, they share what is compiled."""
    for part in network.modules():
        if isinstance(part, Block | TemporalAdapter):
            part.compile(backend=backend)
        elif isinstance(part, Ladder):
            # It adds up what its adapters change, and does not call them as modules.
            for adapter in (part.adapter_beside(int(k)) for k in part.adapters):
                adapter.change = torch.compile(adapter.change, backend=backend)  # type: ignore[method-assign]


def compile_function(function: Callable[P, R], parts: Compile) -> Callable[P, R]:
    """Return a function of tensors that a step calls beside the network, compiled with `all`.

    Sizes may change from call to call.

    Raises:
        ValueError: this machine has no compiler.
    """
    if parts != "all":
        return function
    _check_compiler()
    return torch.compile(function, backend=BACKEND)


def describe_unused(parts: Compile, learns: bool) -> list[str]:
    """Return a line about parts that a run on cached activations is to compile, but does not run.

    Args:
        learns: whether blocks behind the cached ones learn, and so run.
    """
    if parts != "blocks" or learns:
        return []
    return [
        "training.compile blocks compiles nothing here: what blocks give is on the cache; "
        "training.compile all compiles heads"
    ]


def _check_compiler() -> None:
    """Raise ValueError if this machine has no compiler."""
    if BACKEND == "inductor" and not any(map(shutil.which, _compilers())):
        raise ValueError(
            "training.compile needs a compiler of C++, which this machine does not have; install "
            f"one ({' or '.join(COMPILERS[:2])}), or set training.compile off"
        )


def _compilers() -> Iterator[str]:
    yield from filter(None, [os.environ.get("CXX")])
    yield from COMPILERS
