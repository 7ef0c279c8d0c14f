"""Prefixes that wrappers of a network put before the names of its tensors."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

# Of torch.compile, FSDP, activation checkpointing and Lightning's strategies: never a part's name.
MARKS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
PARALLEL = "module."  # of DataParallel and DistributedDataParallel
ATTRIBUTES = ("model.", "net.", "network.")  # of Lightning modules and the like, around all


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names that they have in the network itself.

    An attribute's name is removed only where all tensors have it: else it is one of several parts.
    """
    names = {name: _without_marks(name) for name in tensors}
    while wrapper := next((w for w in ATTRIBUTES if _all_begin(names.values(), w)), None):
        names = {old: _without_marks(new.removeprefix(wrapper)) for old, new in names.items()}
    if len(set(names.values())) < len(names):  # two copies of a network, one of them wrapped
        return dict(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _without_marks(name: str) -> str:
    bare = MARKS.sub("", name)
    while bare.startswith(PARALLEL):
        bare = bare.removeprefix(PARALLEL)
    return bare


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def count_parts(names: Iterable[str]) -> str:
    """Return the first parts of dotted names with how many names have each, the most first."""
    counts = Counter(
        f"{part}." if dot else part for part, dot, _ in (n.partition(".") for n in names)
    )
    shown = [f"{part} ({count})" for part, count in counts.most_common(6)]
    return ", ".join([*shown, *(["…"] if len(counts) > len(shown) else [])])


def prefix_that_fits(names: Iterable[str], wanted: Iterable[str]) -> tuple[str, int]:
    """Return the prefix without which most of the names are wanted, and how many; or ("", 0)."""
    lacking, counts = set(wanted), Counter[str]()
    for name in names:
        for dot in re.finditer(r"\.", name):
            if name[dot.end() :] in lacking:
                counts[name[: dot.end()]] += 1
    return counts.most_common(1)[0] if counts else ("", 0)
