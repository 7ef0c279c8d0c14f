"""Files of TAdaConv networks as their project writes them; its names, spelled out a second time."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def batch_norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in parts}
    return shapes | {f"{name}.num_batches_tracked": ()}


def with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def tada2d(classes: int = 400, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64) -> Shapes:
    shapes: Shapes = {"backbone.conv1.a.weight": (width, 3, 1, 7, 7)}
    shapes |= batch_norm("backbone.conv1.a_bn", width)
    inputs = width
    for stage, count in enumerate(blocks):
        mid = width * 2**stage
        for k in range(count):
            block = f"backbone.conv{stage + 2}.res_{k + 1}"
            if k == 0:
                shapes[f"{block}.short_cut.weight"] = (4 * mid, inputs, 1, 1, 1)
                shapes |= batch_norm(f"{block}.short_cut_bn", 4 * mid)
            branch = f"{block}.conv_branch"
            shapes[f"{branch}.a.weight"] = (mid, inputs, 1, 1, 1)
            shapes |= batch_norm(f"{branch}.a_bn", mid)
            shapes[f"{branch}.b.weight"] = (1, 1, mid, mid, 3, 3)
            shapes |= with_bias(f"{branch}.b_rf.g", mid, mid, 1, 1, 1)
            shapes |= with_bias(f"{branch}.b_rf.a", mid // 4, mid, 3, 1, 1)
            shapes |= batch_norm(f"{branch}.b_rf.bn", mid // 4)
            shapes[f"{branch}.b_rf.b.weight"] = (mid, mid // 4, 3, 1, 1)
            shapes |= batch_norm(f"{branch}.b_bn", mid)
            shapes |= batch_norm(f"{branch}.b_avgpool_bn", mid)
            shapes[f"{branch}.c.weight"] = (4 * mid, mid, 1, 1, 1)
            shapes |= batch_norm(f"{branch}.c_bn", 4 * mid)
            inputs = 4 * mid
    return shapes | with_bias("head.out", classes, inputs)


def two_tasks(shapes: Shapes, classes: Sequence[int]) -> Shapes:
    """The same with a classifier for verbs and one for nouns."""
    _, width = shapes["head.out.weight"]
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("head.")}
    for number, count in enumerate(classes, 1):
        shapes |= with_bias(f"head.linear{number}", count, width)
    return shapes


def convnext(
    classes: int = 400,
    depths: Sequence[int] = (3, 3, 9, 3),
    widths: Sequence[int] = (96, 192, 384, 768),
) -> Shapes:
    shapes = with_bias("backbone.downsample_layers.0.0", widths[0], 3, 3, 4, 4)
    shapes |= with_bias("backbone.downsample_layers.0.1", widths[0])
    for i in range(1, len(widths)):
        shapes |= with_bias(f"backbone.downsample_layers.{i}.0", widths[i - 1])
        layer = f"backbone.downsample_layers.{i}.1"
        shapes |= with_bias(layer, widths[i], widths[i - 1], 1, 2, 2)
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for j in range(depth):
            block, half = f"backbone.stages.{i}.{j}", width // 2
            shapes[f"{block}.gamma"] = (width,)
            shapes[f"{block}.dwconv.weight"] = (1, 1, width, 1, 7, 7)
            shapes[f"{block}.dwconv.bias"] = (1, 1, width)
            shapes |= with_bias(f"{block}.dwconv_rf.a", half, width, 3, 1, 1)
            shapes |= with_bias(f"{block}.dwconv_rf.norm", half)
            shapes |= with_bias(f"{block}.dwconv_rf.norm_transformer", half)
            shapes |= with_bias(f"{block}.dwconv_rf.qkv_proj", 3 * half, half, 1, 1, 1)
            shapes |= with_bias(f"{block}.dwconv_rf.attn_out", half, half, 1, 1, 1)
            shapes[f"{block}.dwconv_rf.b.weight"] = (width, half, 3, 1, 1)
            shapes[f"{block}.dwconv_rf.b_bias.weight"] = (width, half, 3, 1, 1)
            shapes |= with_bias(f"{block}.norm", width) | with_bias(f"{block}.norm_avgpool", width)
            shapes |= with_bias(f"{block}.pwconv1", 4 * width, width)
            shapes |= with_bias(f"{block}.pwconv2", width, 4 * width)
    return shapes | with_bias("backbone.norm", widths[-1]) | with_bias("head.out", classes, width)


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values of all tensors, by the recipe that came with the reference numbers."""
    return {name: _drawn(name, shape) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return torch.from_numpy(1 + 0.1 * np.abs(n)).float()
    if len(shape) > 1:
        return torch.from_numpy(n * np.float32(0.7 / np.sqrt(np.prod(shape[1:]))))
    gain = name.endswith(("weight", "gamma", "scale"))
    return torch.from_numpy(1 + 0.05 * n if gain else 0.05 * n).float()
