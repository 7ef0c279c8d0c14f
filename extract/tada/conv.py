"""TAdaConv: convolutions whose weights follow the video (Huang et al., ICLR 2022).

In frame t of a clip the weights are W_t = α_t · W: a base W, which all frames share, with each of
its input channels, or each of its output channels, scaled by a factor that the clip itself gives.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.layers.residual import drop_path

Calibrates = Literal["in", "out"]
"""The channels of the base weights that the factors scale."""

REDUCTION = 4
"""Channels over hidden channels of a route."""

MEAN, STD = 0.45, 0.225  # of pixels from 0 to 1, in all published networks


class Route(nn.Module):
    """The routing function: factors of every frame, from the frame and from its whole clip.

    It begins with factors of exactly 1.

    Args:
        channels: of the frames.
        factors: number of factors of a frame.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        hidden = channels // REDUCTION
        self.clip = nn.Conv1d(channels, channels, 1)
        self.down = nn.Conv1d(channels, hidden, 3, padding=1)
        self.norm = nn.BatchNorm1d(hidden)
        self.up = nn.Conv1d(hidden, factors, 3, padding=1, bias=False)
        for layer in (self.clip, self.down):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames averaged over space [B, C, T] to their factors α [B, factors, T]."""
        context = frames + self.clip(frames.mean(-1, keepdim=True))
        return 1 + self.up(F.relu(self.norm(self.down(context))))


class TAdaConv(nn.Module):
    """A temporally adaptive convolution, to be used in place of a plain one.

    No weights are made for single frames: a factor of an input channel scales that channel's input
    instead, and one of an output channel its output. The sums are the same, frames stay one batch,
    and a TAda2D ResNet-50 takes about as long as with plain convolutions; with weights for every
    frame, in a convolution of as many groups, it took 2 to 5 times as long (on a CPU:
    benchmarks/tada.py).

    Args:
        conv: over frames, or over [T, H, W]; its weights are the base, its bias is unchanged.
        calibrates: channels that the factors scale.
        frames: of a clip, if `conv` is over single frames and the network that calls it does not
            pass the number.

    Raises:
        ValueError: the convolution is not torch's own, reads too few channels, or its outputs are
            not centred on the frames that they are computed from.
    """

    def __init__(
        self,
        conv: nn.Conv2d | nn.Conv3d,
        calibrates: Calibrates = "in",
        frames: int | None = None,
    ) -> None:
        super().__init__()
        _check_suitable(conv)
        self.conv, self.calibrates, self.frames = conv, calibrates, frames
        factors = conv.in_channels if calibrates == "in" else conv.out_channels
        self.route = Route(conv.in_channels, factors)

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        """Return the convolution, in the shape that the plain one gives.

        Args:
            x: [B, C, T, H, W] for a convolution over [T, H, W]; for one over frames [B·T, C, H, W].
            frames: T of folded frames, if the constructor did not get it.

        Raises:
            ValueError: `x` does not divide into clips of so many frames.
        """
        if isinstance(self.conv, nn.Conv3d):
            return self._convolve_clips(x, self.conv)
        return self._convolve_frames(x, self.conv, require_whole_clips(x, frames or self.frames))

    def _convolve_frames(self, x: Tensor, conv: nn.Conv2d, frames: int) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1).flatten(1).unflatten(0, (-1, frames))
        alpha = self.route(means.transpose(1, 2)).transpose(1, 2).flatten(0, 1)[..., None, None]
        if self.calibrates == "in":
            return conv(x * alpha)
        plain = F.conv2d(
            x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        return _add_bias(plain * alpha, conv.bias)

    def _convolve_clips(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        # The factors are those of the frame that an output is centred on.
        alpha = self.route(x.mean((-2, -1)))[:, :, :: conv.stride[0], None, None]
        strides, dilation, groups = conv.stride, conv.dilation, conv.groups
        if self.calibrates == "out":
            plain = F.conv3d(x, conv.weight, None, strides, conv.padding, dilation, groups)
            return _add_bias(plain * alpha, conv.bias)
        if conv.kernel_size[0] == 1 and strides[0] == 1:
            return conv(x * alpha)
        # A frame has other factors in each output that it contributes to, so the contributions of
        # the frames before, at and after each output are computed one by one and added.
        assert not isinstance(conv.padding, str)
        ahead, *around = conv.padding
        padded = F.pad(x, (0, 0, 0, 0, ahead, ahead))
        length = (alpha.shape[2] - 1) * strides[0] + 1
        taps = []
        for k in range(conv.kernel_size[0]):
            first = k * dilation[0]
            part = padded[:, :, first : first + length : strides[0]] * alpha
            weight, step, spread = conv.weight[:, :, k : k + 1], strides[1:], dilation[1:]
            taps.append(
                F.conv3d(part, weight, None, (1, *step), (0, *around), (1, *spread), groups)
            )
        return _add_bias(sum(taps[1:], taps[0]), conv.bias)


def calibrate_convs(
    network: nn.Module, frames: int | None = None, calibrates: Calibrates = "in"
) -> list[str]:
    """Make a network's convolutions temporally adaptive, in place; its output stays the same.

    All convolutions over more than one pixel are replaced, except the one that reads the video.
    Their weights become the base weights, and the factors begin at 1.

    Args:
        network: of convolutions over [B, C, T, H, W], as torchvision's R3D, R(2+1)D and MC3, or
            over frames, as timm's ResNets, which get clips as consecutive frames [B·T, C, H, W].
        frames: T, required for convolutions over frames.

    Returns:
        The names of the modules that are now a `TAdaConv`.

    Raises:
        ValueError: there is no such convolution, it is not torch's own, or `frames` is missing.
    """
    found = _plain_convs(network)
    if not found:
        raise ValueError(
            "the network holds no convolution that could be calibrated: one over "
            f"more than one pixel, with at least {REDUCTION} input channels"
        )
    for name, conv in found.items():
        over_frames = isinstance(conv, nn.Conv2d)
        if over_frames and frames is None:
            raise ValueError(f"{name} sees single frames: say how many a clip has (frames=8)")
        parent, _, child = name.rpartition(".")
        try:
            adaptive = TAdaConv(conv, calibrates, frames if over_frames else None)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        adaptive.to(conv.weight).train(conv.training)
        setattr(network.get_submodule(parent), child, adaptive)
    return list(found)


def require_whole_clips(x: Tensor, frames: int | None) -> int:
    """Return `frames`, of a clip of the batch [B·T, C, H, W].

    Raises:
        ValueError: it is None, or the batch does not divide into such clips.
    """
    if frames is None or len(x) % frames:
        raise ValueError(
            f"{len(x)} frames [B·T, C, H, W] do not divide into clips of {frames}; say how many "
            "frames a clip has, and give whole clips"
        )
    return frames


def normalise_pixels(frames: Tensor) -> Tensor:
    """Return uint8 frames normalised for the networks; others are assumed to be so already."""
    return (frames / 255 - MEAN) / STD if frames.dtype == torch.uint8 else frames


def average_over_time(x: Tensor, frames: int) -> Tensor:
    """Return each frame of [B·T, C, H, W] averaged with both neighbours; zeros beyond the ends.

    T by H·W is a plane over which 2-D pooling is fast, and with channels last nothing is copied.
    """
    plane = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames)).flatten(2, 3).permute(0, 3, 1, 2)
    mean = F.avg_pool2d(plane, (3, 1), stride=1, padding=(1, 0))
    return mean.permute(0, 2, 3, 1).reshape(*x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


def skip_clips(x: Tensor, frames: int, probability: float) -> Tensor:
    """Return [B·T, …] with whole clips zeroed at random, the others scaled to keep the mean."""
    clips = drop_path(x.new_ones(len(x) // frames, *[1] * (x.ndim - 1)), probability, True)
    return x * clips.repeat_interleave(frames, 0)


def _plain_convs(network: nn.Module, prefix: str = "") -> dict[str, nn.Conv2d | nn.Conv3d]:
    found: dict[str, nn.Conv2d | nn.Conv3d] = {}
    for name, module in network.named_children():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            pixels = module.kernel_size[-1] * module.kernel_size[-2]
            if pixels > 1 and module.in_channels >= REDUCTION:
                found[prefix + name] = module
        elif not isinstance(module, TAdaConv):
            found |= _plain_convs(module, f"{prefix}{name}.")
    return found


def _check_suitable(conv: nn.Conv2d | nn.Conv3d) -> None:
    if type(conv).forward not in (nn.Conv2d.forward, nn.Conv3d.forward) or isinstance(
        conv.padding, str
    ):
        raise ValueError(
            f"{type(conv).__name__} does not convolve as torch's own does with numbers for padding"
        )
    if conv.in_channels < REDUCTION:
        raise ValueError(
            f"it reads {conv.in_channels} channels; a route needs at least {REDUCTION}"
        )
    if conv.padding_mode != "zeros":
        raise ValueError(f"it pads with '{conv.padding_mode}'; only zeros are known here")
    if isinstance(conv, nn.Conv3d):
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
        if 2 * conv.padding[0] != reach:
            raise ValueError(
                f"a kernel of {conv.kernel_size[0]} frames with padding {conv.padding[0]} gives "
                "frames that stand at none of the input"
            )


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.view(-1, *[1] * (x.ndim - 2))
