"""Networks compiled for training, in place: tensors, and so checkpoints, keep their names."""

import os
import shutil
from collections.abc import Iterator

from torch import nn

from extract.backbone.adapters import TemporalAdapter
from extract.backbone.videomae import Block
from train.config import Compile

BACKEND = "inductor"
COMPILERS = "g++", "clang++", "gcc", "clang"


def compile_network(network: nn.Module, parts: Compile) -> None:
    """Compile the parts of a network that a run asks for, when each is first called.

    Raises:
        ValueError: it has no such parts, or this machine has no compiler.
    """
    if parts == "off":
        return
    if BACKEND == "inductor" and not any(map(shutil.which, _compilers())):
        raise ValueError(
            "training.compile needs a compiler of C++, which this machine does not have; install "
            f"one ({' or '.join(COMPILERS[:2])}), or set training.compile off"
        )
    modules = [network] if parts == "all" else [*compiled_parts(network)]
    if not modules:
        raise ValueError(
            "training.compile blocks is for transformers, and this network has no block of one; "
            "set training.compile all or off"
        )
    for module in modules:
        module.compile(backend=BACKEND)


def compiled_parts(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the transformer's blocks and their adapters; alike, they share what is compiled."""
    return (part for part in network.modules() if isinstance(part, Block | TemporalAdapter))


def _compilers() -> Iterator[str]:
    yield from filter(None, [os.environ.get("CXX")])
    yield from COMPILERS
