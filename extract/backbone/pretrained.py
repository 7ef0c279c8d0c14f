"""Loading of pretrained weights into a trunk; which settings to change if sizes differ."""

import math
from pathlib import Path

from extract.backbone.videomae import VideoMAE, sine_positions
from extract.checkpoints.layouts import ADDED, PUBLISHED, FoundNetwork, Size, recognise
from extract.checkpoints.strict import Coverage, load_state_dict_strict
from extract.checkpoints.tensor_files import read_tensors
from extract.settings.backbone import TrunkConfig
from extract.settings.units import CLIP_FRAMES, CLIP_STEPS, TUBELET


def load_trunk(trunk: VideoMAE, source: str | Path) -> Coverage:
    """Load a pretrained transformer from a file or folder of any known layout; account for it.

    Of a whole detector only its transformer is loaded, of two streams the first one's.

    Raises:
        ValueError: the file cannot be read, or its transformer has other sizes than the config's.
    """
    content = read_tensors(source)
    network, *others = recognise(content, source)
    check_trunk_size(network, trunk.config, source)
    adapters = [name for name in network.backbone if name.startswith(ADDED)]
    tensors = {
        name.removeprefix("trunk."): tensor
        for name, tensor in network.backbone.items()
        if name not in adapters
    }
    table = sine_positions(*trunk.positions.shape[1:])
    computed = {"positions": table} if "positions" not in tensors else {}
    load_state_dict_strict(trunk, tensors | computed, source)
    dropped = network.why | dict.fromkeys(adapters, "an adapter: only the transformer is taken")
    heads = (f"head.{name}" for name in network.head)
    dropped |= dict.fromkeys(heads, "a detector's head: only the transformer is taken")
    for number, other in enumerate(others, 1):
        names = [*other.backbone, *(f"head.{name}" for name in other.head)]
        dropped |= {f"streams.{number}.{name}": "another stream" for name in names}
    size = str(network.size)
    return Coverage(
        content.name, content.files, network.layout, size, tuple(tensors), tuple(computed), dropped
    )


def check_trunk_size(network: FoundNetwork, config: TrunkConfig, source: str | Path) -> None:
    """Raise ValueError, which names the settings, unless a transformer has the config's size."""
    size = network.size
    wanted = trunk_settings(network, source)
    if size.hidden == round(config.width * config.mlp_ratio):
        wanted.pop("mlp_ratio", None)  # a published ratio is a fraction, which configs round
    wrong = {name: value for name, value in wanted.items() if getattr(config, name) != value}
    if not wrong:
        return
    ours = Size(config.width, config.depth, 0, config.patch, None)
    settings = ", ".join(f"backbone.trunk.{name} {value:g}" for name, value in wrong.items())
    if "image_size" in wrong and size.positions is not None:
        settings += (
            f" (its position table has {size.positions} rows, {_possible_clips(size)}; frames of "
            "any size can be used with it, resized to their grid)"
        )
    raise ValueError(f"{source} holds {size}; the config has {ours}: set {settings}")


def trunk_settings(network: FoundNetwork, source: str | Path) -> dict[str, float]:
    """Return a network's `backbone.trunk` settings, as far as its file has them.

    Raises:
        ValueError: its position table is for clips of other lengths than ours.
    """
    size = network.size
    settings: dict[str, float] = {"width": size.width, "depth": size.depth}
    heads = network.settings.get("num_attention_heads")
    if heads is None and not network.layout.startswith("Palindrome"):
        # No tensor shows it; other projects' networks have the published number.
        _, heads = PUBLISHED.get((size.width, size.depth), (None, None))
    if heads is not None:
        settings["heads"] = heads
    if size.hidden:
        settings["mlp_ratio"] = size.hidden / size.width
    settings["patch"] = size.patch
    side = network.settings.get("image_size")
    if size.positions is not None:
        grid = math.isqrt(size.positions // CLIP_STEPS)
        if CLIP_STEPS * grid**2 != size.positions:
            raise ValueError(
                f"{source}: its position table has {size.positions} rows, {_possible_clips(size)}; "
                f"Palindrome's clips have {CLIP_FRAMES} frames"
            )
        side = grid * size.patch
    if isinstance(side, int):
        settings["image_size"] = side
    return settings


def _possible_clips(size: Size) -> str:
    """Return a phrase for the clips that a position table may be for; several are possible."""
    rows = size.positions or 0
    clips = [
        f"{steps * TUBELET} frames of {grid * size.patch} px"
        for steps in (8, 1, 2, 4, 16, 32, 64)
        for grid in [math.isqrt(rows // steps)]
        if steps * grid**2 == rows
    ]
    return f"as clips of {' or '.join(clips)} have" if clips else "as no clip of square frames has"
