"""The VideoMAE encoder (Tong et al., NeurIPS 2022): a plain transformer over 16-frame clips."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.settings.backbone import TrunkConfig
from extract.settings.units import CLIP_STEPS, TUBELET

Working = tuple[Tensor, Tensor]
"""A frozen product's weight and bias as they are computed with; see `hold_frozen`."""


class Linear(nn.Linear):
    """A linear layer.

    Attributes:
        working: what it computes with; None for its own weight and bias.
    """

    working: Working | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(input, *(self.working or (self.weight, self.bias)))

    def hold(self, dtype: torch.dtype) -> None:
        """Compute with copies of weight and bias from now on."""
        self.working = self.weight.detach().to(dtype), self.bias.detach().to(dtype)


class Attention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none.

    Attributes:
        working: what makes queries, keys and values; None for its own weight and biases.
    """

    working: Working | None = None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, L, C] to [N, L, C]."""
        n, length, width = x.shape
        weight, bias = self.working or (self.qkv.weight, self._bias())
        qkv = F.linear(x, weight, bias).view(n, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, width))

    def hold(self, dtype: torch.dtype) -> None:
        """Compute queries, keys and values with copies of weight and biases from now on."""
        self.working = self.qkv.weight.detach().to(dtype), self._bias().detach().to(dtype)

    def _bias(self) -> Tensor:
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, L, C] to [N, L, C]."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        # Rounded as in the published v2-g: its ratio of 48/11 gives 6144 channels of 1408.
        self.mlp = Mlp(config.width, round(config.width * config.mlp_ratio))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Map tokens [N, L, C] to [N, L, C].

        Args:
            scale: factors of the two branches per sequence [N, 2, 1, 1] (drop path); None for 1.
        """
        if scale is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = _add_scaled(x, self.attn(self.norm1(x)), scale[:, 0])
        return _add_scaled(x, self.mlp(self.norm2(x)), scale[:, 1])


def _add_scaled(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """Return x + branch · scale, where a branch in half precision is scaled in it, as timm does."""
    if branch.dtype == x.dtype:
        return torch.addcmul(x, branch, scale)
    return x + branch * scale.to(branch.dtype)  # addcmul would copy the branch to float32 first


class VideoMAE(nn.Module):
    """Patch embedding, fixed positions and the blocks; `Backbone` runs them.

    Attributes:
        working: the positions [1, 8·s², C] of s × s patches, and s; None if they are not held.
    """

    positions: Tensor
    working: tuple[Tensor, int] | None = None

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch
        self.patch_embed = Linear(3 * TUBELET * config.patch**2, config.width)
        self.register_buffer("positions", sine_positions(CLIP_STEPS * grid**2, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        # Plain numbers: they exist also if the module is built on the meta device.
        self.drop_rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, clips: Tensor, scale: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Map clips [N, 3, 16, H, W] to tokens [N, 8·h·w, C], h = ⌊H / patch⌋.

        Args:
            scale: the channels' mean and standard deviation; None if clips are normalised.
        """
        n, channels, frames, height, width = clips.shape
        patch = self.config.patch
        h, w = height // patch, width // patch
        if not h * w:
            raise ValueError(f"frames of {height}x{width} px hold no patch of {patch} px")
        # As with a convolution of that stride, the remainder at the lower right edges is dropped.
        clips = clips[..., : h * patch, : w * patch]
        cubes = clips.reshape(n, channels, frames // TUBELET, TUBELET, h, patch, w, patch)
        # A convolution whose stride is its kernel is a matrix product over unfolded patches.
        flat = cubes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(n, frames // TUBELET * h * w, 3, -1)
        if scale is not None:  # after the reordering, which moves bytes, and in one copy
            mean, std = (values.view(3, 1) for values in scale)
            flat = (flat - mean).div_(std)
        return self.patch_embed(flat.flatten(2)) + self._positions_for(h, w)

    def hold_positions(self, size: int) -> None:
        """Keep the positions of pictures of `size`² pixels from now on."""
        side = size // self.config.patch
        self.working = self._positions_for(side, side), side

    def _positions_for(self, h: int, w: int) -> Tensor:
        grid = self.config.image_size // self.config.patch
        if (h, w) == (grid, grid):
            return self.positions
        if self.working is not None and h == w == self.working[1]:
            return self.working[0]
        table = self.positions.view(CLIP_STEPS, grid, grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(h, w), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).reshape(1, CLIP_STEPS * h * w, -1)


def sine_positions(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the fixed sine-cosine table [1, count, width] (Vaswani et al. 2017, section 3.5).

    Args:
        device: where it is computed; None: on the CPU, then it is copied to the default device.
    """
    # On the meta device torch would import its compiler to make such a sequence: a second of CPU.
    # Apple's GPUs have no float64.
    on_cpu = device is None or device.type == "mps"
    channel, place = (
        torch.arange(n, dtype=torch.float64, device="cpu" if on_cpu else device)
        for n in (width, count)
    )
    rate = 10000 ** (-2 * torch.div(channel, 2, rounding_mode="floor") / width)
    angle = place[:, None] * rate
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None].to(device or torch.get_default_device())
