"""Files of weights, described for people, and converted to Palindrome's layout or OpenTAD's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from configs.atomic import atomic_path
from configs.messages import format_bytes, truncated
from extract.backbone.pretrained import trunk_settings
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.key_maps import ADAPTERS, MMACTION, head_to_opentad, invert_map, rename_key
from extract.checkpoints.layouts import (
    ADDED,
    DETECTOR,
    KEPT,
    NORMALIZER,
    FoundNetwork,
    describe_classes,
)
from extract.checkpoints.strict import find_not_finite, list_first
from extract.checkpoints.tensor_files import TensorFile, hash_files
from extract.settings.backbone import TrunkConfig
from extract.settings.units import TUBELET
from extract.tada.pretrained import TAdaNetwork, build_tada

OPENTAD = "backbone.model.backbone."
FINAL_NORM = f"{OPENTAD}fc_norm."


def describe_content(content: TensorFile, what: str) -> None:
    """Print what a file holds, in a phrase, its size and its SHA-256."""
    part = f", of its '{content.part}'" if content.part else ""
    numbers = sum(tensor.numel() for tensor in content.tensors.values())
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in content.tensors.values()})
    print(f"{content.name}: {what}")
    print(f"  {format_bytes(content.bytes)}, {len(content.tensors)} tensors{part}, ", end="")
    print(f"{numbers:,} parameters and buffers, {' and '.join(kinds)}")
    for name, digest in hash_files(content.files).items():
        print(f"  SHA-256 {digest}  {name}")


def describe_tada(path: Path, content: TensorFile, network: TAdaNetwork) -> None:
    """Print what a file with a TAdaConv network holds, and what is wrong with it."""
    describe_content(content, str(network))
    if network.tasks:
        print(f"  {network.classes}; not named")
    for line in find_tada_problems(network):
        print(f"  {line}")


def describe_networks(path: Path, content: TensorFile, networks: tuple[FoundNetwork, ...]) -> None:
    """Print what a file holds, which tensors are used and what is wrong with it."""
    network = networks[0]
    streams = f", {len(networks)} streams" if len(networks) > 1 else ""
    describe_content(content, f"{network.layout}, {network.size}{streams}")
    if blocks := network.adapted:
        print(f"  mode {network.mode}: {len(blocks)} adapters, blocks {blocks[0]} to {blocks[-1]}")
    else:
        print("  mode none: a plain transformer")
    if network.outputs is not None:
        print(f"  {describe_outputs(network)}")
    settings = trunk_settings(network, path)
    print("  backbone.trunk: " + ", ".join(f"{n} {value:g}" for n, value in settings.items()))
    if network.layout == DETECTOR:
        print("  pixels.antialias: false, its frames were resized without")
    used = sum(len(each.backbone) + len(each.head) for each in networks)
    print(f"  used: {used} tensors of backbone and head")
    for reason in dict.fromkeys(network.why.values()):
        names = [name for name, why in network.why.items() if why == reason]
        print(f"  not used: {', '.join(truncated(names))}: {reason}")
    for line in find_problems(network):
        print(f"  {line}")


def describe_outputs(network: FoundNetwork) -> str:
    """Return a phrase for a network's classes."""
    count, what = network.outputs or 0, "detector" if network.head else "classifier"
    if network.classes:
        return f"{what} of {count} classes: {', '.join(truncated(network.classes))}"
    return f"{what} of {describe_classes(count)}; not named"


def find_problems(network: FoundNetwork) -> list[str]:
    """Return lines for tensors that are missing, not a transformer's, or no numbers."""
    # A tiny one of the same depth has the same names.
    tiny = TrunkConfig(width=1, depth=max(network.size.depth, 1), heads=1, patch=1, image_size=1)
    names = {f"trunk.{name}" for name in VideoMAE(tiny).state_dict()}
    own = {n for n in network.backbone if not n.startswith(ADDED)}
    # The position table is computed where there is none.
    lacking = sorted(names - own - {"trunk.positions"})
    lines = [f"missing: {n}" for n in lacking] + [f"not known: {n}" for n in sorted(own - names)]
    return lines + describe_not_finite(to_ours(network))


def find_tada_problems(network: TAdaNetwork) -> list[str]:
    """Return lines for a TAdaConv network's missing, unknown, mis-shaped and NaN tensors."""
    with torch.device("meta"):
        own = build_tada(network.config).state_dict()
    found = network.tensors
    lines = [f"missing: {name}" for name in sorted(own.keys() - found.keys())]
    lines += [f"not known: {name}" for name in sorted(found.keys() - own.keys())]
    shapes = [(n, found[n].shape, own[n].shape) for n in sorted(own.keys() & found.keys())]
    lines += describe_not_finite(found)
    return lines + [
        f"{name} is {tuple(theirs)}, not {tuple(ours)}"
        for name, theirs, ours in shapes
        if theirs != ours
    ]


def describe_not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a line that names the tensors with NaN or infinite numbers, if there are any."""
    bad = find_not_finite(tensors)
    return [f"not finite: {list_first(bad)}"] if bad else []


def convert_tada(path: Path, network: TAdaNetwork, out: Path) -> None:
    """Write a TAdaConv network in Palindrome's layout.

    Raises:
        ValueError: this file cannot be converted, or not into `out`.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--convert: a TAdaConv network becomes a .safetensors file, not {out}")
    check_convertible(path, out, find_tada_problems(network))
    with atomic_path(out) as aside:
        state = {name: tensor.contiguous() for name, tensor in network.tensors.items()}
        save_file(state, aside, {"format": "pt"})
    print(f"{out}: {len(state)} tensors, {format_bytes(out.stat().st_size)}")


def check_convertible(path: Path, out: Path, problems: Sequence[str]) -> None:
    """Raise ValueError if there are problems with the network, or the file would be overwritten."""
    if problems:
        raise ValueError(f"{path} cannot be converted: {'; '.join(truncated(problems))}")
    if out.resolve() == path.resolve():
        raise ValueError(f"--convert: {out} is the file itself; choose another name")


def convert(path: Path, networks: tuple[FoundNetwork, ...], out: Path) -> None:
    """Write a network in Palindrome's layout (.safetensors) or in OpenTAD's (.pth).

    Raises:
        ValueError: this file cannot be converted, or not into `out`.
    """
    if out.suffix not in (".safetensors", ".pth"):
        raise ValueError(
            f"--convert: {out} must end in .safetensors (Palindrome) or .pth (OpenTAD)"
        )
    if len(networks) > 1:
        raise ValueError(f"{path} has {len(networks)} streams; only a single one can be converted")
    (network,) = networks
    check_convertible(path, out, find_problems(network))
    with atomic_path(out) as aside:
        if out.suffix == ".pth":
            state = to_opentad(network)
            torch.save({"epoch": 0, "state_dict": state, "state_dict_ema": state}, aside)
        else:
            state = {name: tensor.contiguous() for name, tensor in to_ours(network).items()}
            about = {"format": "pt"}  # as safetensors' own programs write
            if network.classes:
                about["classes"] = json.dumps(network.classes)
            save_file(state, aside, about)
    print(f"{out}: {len(state)} tensors, {format_bytes(out.stat().st_size)}")


def to_ours(network: FoundNetwork) -> dict[str, Tensor]:
    """Return a network's tensors in Palindrome's layout, with those that only OpenTAD needs."""
    head = {f"head.{name}": tensor for name, tensor in network.head.items()}
    return network.backbone | head | {KEPT + n: t for n, t in _select_opentad_only(network).items()}


def to_opentad(network: FoundNetwork) -> dict[str, Tensor]:
    """Return a network's tensors in the layout of OpenTAD's detectors.

    Tensors that only those have are the file's, if it kept them, else initial values: the norm
    after the last block, which no feature passes, and the normaliser of the loss.

    Raises:
        ValueError: the network has parts that OpenTAD's detectors do not have.
    """
    size = network.size
    first = size.depth - len(network.adapted)
    theirs: dict[str, Tensor] = {}
    for name, tensor in network.backbone.items():
        part, rest = name.split(".", 1)
        if part == "trunk":
            if rest == "patch_embed.weight":
                tensor = tensor.unflatten(1, (3, TUBELET, size.patch, size.patch))
            theirs[OPENTAD + rename_key(rest, invert_map(MMACTION))] = tensor
        elif part in ("adapters", "ladder"):
            number, rest = rest.removeprefix("adapters.").split(".", 1)
            rest = rename_key(f".{rest}", invert_map(ADAPTERS))
            beside = f"ladders.adapters.{int(number) - first}"
            theirs[
                OPENTAD + (beside if part == "ladder" else f"blocks.{number}.adapter") + rest
            ] = tensor
        else:
            raise ValueError(f"OpenTAD has nothing like {name}")
    if network.mode != "side":
        theirs[f"{FINAL_NORM}weight"] = torch.ones(size.width)
        theirs[f"{FINAL_NORM}bias"] = torch.zeros(size.width)
    if network.head:
        theirs |= head_to_opentad(network.head) | {NORMALIZER: torch.tensor(100)}
    return {
        f"module.{name}": tensor
        for name, tensor in (theirs | _select_opentad_only(network)).items()
    }


def _select_opentad_only(network: FoundNetwork) -> dict[str, Tensor]:
    """Return the tensors that only OpenTAD needs, by its names."""
    plain = {name.removeprefix(KEPT): tensor for name, tensor in network.dropped.items()}
    return {n: t for n, t in plain.items() if n.startswith((FINAL_NORM, NORMALIZER))}
