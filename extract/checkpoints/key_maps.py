"""Key maps: other projects' names of the tensors of a network, and ours."""

from collections.abc import Mapping, Sequence

from torch import Tensor

KeyMap = Sequence[tuple[str, str]]
"""Pairs of theirs and ours; each is replaced wherever it occurs in a name."""

TRUNKS: dict[str, tuple[str, KeyMap]] = {  # layouts by their patch embedding
    "trunk.patch_embed.weight": ("Palindrome weights", ()),
    "patch_embed.projection.weight": (
        "mmaction2 VideoMAE",
        (
            ("patch_embed.projection.", "patch_embed."),
            (".mlp.layers.0.0.", ".mlp.fc1."),
            (".mlp.layers.1.", ".mlp.fc2."),
            ("pos_embed", "positions"),
        ),
    ),
    "patch_embed.proj.weight": (
        "VideoMAE",
        (("patch_embed.proj.", "patch_embed."), ("pos_embed", "positions")),
    ),
    "embeddings.patch_embeddings.projection.weight": (
        "Hugging Face VideoMAE",
        (
            ("embeddings.patch_embeddings.projection.", "patch_embed."),
            ("embeddings.position_embeddings", "positions"),
            ("encoder.layer.", "blocks."),
            (".layernorm_before.", ".norm1."),
            (".layernorm_after.", ".norm2."),
            (".attention.attention.query.bias", ".attn.q_bias"),
            (".attention.attention.value.bias", ".attn.v_bias"),
            (".attention.attention.", ".attn."),
            (".attention.output.dense.", ".attn.proj."),
            (".intermediate.dense.", ".mlp.fc1."),
            (".output.dense.", ".mlp.fc2."),
        ),
    ),
}
MMACTION: KeyMap = TRUNKS["patch_embed.projection.weight"][1]
ADAPTERS: KeyMap = (
    (".dwconv.", ".depthwise."),
    (".conv.", ".pointwise."),
    (".down_proj.", ".down."),
    (".up_proj.", ".up."),
)
HEAD: KeyMap = (  # every name occurs once in a key; the parameter's comes last
    ("projection.embed.", "embed."),
    ("projection.stem.", "stem."),
    ("projection.branch.", "branch."),
    ("neck.fpn_norms.", "norms."),
    ("rpn_head.cls_convs.", "class_tower."),
    ("rpn_head.reg_convs.", "distance_tower."),
    ("rpn_head.cls_head.", "class_out."),
    ("rpn_head.reg_head.", "distance_out."),
    ("rpn_head.scale.", "scales."),
    (".ln1.", ".attention_norm."),
    (".ln2.", ".mlp_norm."),
    (".attn.query_conv.conv.", ".attention.query.conv."),
    (".attn.key_conv.conv.", ".attention.key.conv."),
    (".attn.value_conv.conv.", ".attention.value.conv."),
    (".attn.query_norm.", ".attention.query.norm."),
    (".attn.key_norm.", ".attention.key.norm."),
    (".attn.value_norm.", ".attention.value.norm."),
    (".attn.query.", ".attention.query.linear."),
    (".attn.key.", ".attention.key.linear."),
    (".attn.value.", ".attention.value.linear."),
    (".attn.proj.", ".attention.out."),
    (".mlp.3.", ".mlp.2."),  # theirs counts a dropout of probability 0
    (".drop_path_attn.", ".attention_path.0."),
    (".drop_path_mlp.", ".mlp_path.0."),
    (".scale", ".gamma"),
)

IMAGE_RESNET: KeyMap = (  # timm's and torchvision's; those of blocks, with a leading dot, first
    (".conv1.", ".reduce."),
    (".bn1.", ".reduce_norm."),
    (".conv2.", ".adaptive.conv."),
    (".bn2.", ".norm."),
    (".conv3.", ".expand."),
    (".bn3.", ".expand_norm."),
    (".downsample.", ".shortcut."),
    *((f"layer{stage + 1}.", f"stages.{stage}.") for stage in range(4)),
    ("conv1.", "stem."),
    ("bn1.", "stem_norm."),
)
TADA2D: KeyMap = (
    ("backbone.conv1.a.", "stem."),
    ("backbone.conv1.a_bn.", "stem_norm."),
    *(
        (f"backbone.conv{stage + 2}.res_{block + 1}.", f"stages.{stage}.{block}.")
        for stage in range(4)
        for block in range(6)
    ),
    (".short_cut.", ".shortcut.0."),
    (".short_cut_bn.", ".shortcut.1."),
    (".conv_branch.a.", ".reduce."),
    (".conv_branch.a_bn.", ".reduce_norm."),
    (".conv_branch.b.", ".adaptive.conv."),
    (".conv_branch.b_rf.g.", ".adaptive.route.clip."),
    (".conv_branch.b_rf.a.", ".adaptive.route.down."),
    (".conv_branch.b_rf.bn.", ".adaptive.route.norm."),
    (".conv_branch.b_rf.b.", ".adaptive.route.up."),
    (".conv_branch.b_bn.", ".norm."),
    (".conv_branch.b_avgpool_bn.", ".average_norm."),
    (".conv_branch.c.", ".expand."),
    (".conv_branch.c_bn.", ".expand_norm."),
    ("head.out.", "classifier."),
)
TADA_CONVNEXT: KeyMap = (
    ("backbone.downsample_layers.0.0.", "stem."),
    ("backbone.downsample_layers.0.1.", "stem_norm."),
    *(
        pair
        for stage in range(1, 4)
        for pair in (
            (f"backbone.downsample_layers.{stage}.0.", f"downsample.{stage - 1}.norm."),
            (f"backbone.downsample_layers.{stage}.1.", f"downsample.{stage - 1}.conv."),
        )
    ),
    ("backbone.stages.", "stages."),
    (".dwconv.", ".depthwise."),
    (".dwconv_rf.a.", ".route.down."),
    (".dwconv_rf.norm.", ".route.norm."),
    (".dwconv_rf.norm_transformer.", ".route.attention_norm."),
    (".dwconv_rf.qkv_proj.", ".route.qkv."),
    (".dwconv_rf.attn_out.", ".route.out."),
    (".dwconv_rf.b.", ".route.scales."),
    (".dwconv_rf.b_bias.", ".route.shifts."),
    (".norm_avgpool.", ".average_norm."),
    (".pwconv1.", ".grow."),
    (".pwconv2.", ".shrink."),
    ("backbone.norm.", "norm."),
    ("head.out.", "classifier."),
)


def head_from_opentad(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an OpenTAD ActionFormer, renamed and reshaped for `ActionFormer`.

    Unknown names stay unchanged, so that strict loading reports them.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        key = rename_key(key, HEAD)
        if key.endswith(".gamma"):
            value = value.flatten()  # [1, C, 1] or a scalar
        elif value.ndim == 3 and value.shape[-1] == 1:
            value = value.squeeze(-1)  # a linear layer written as a convolution
        converted[key] = value
    return converted


def head_to_opentad(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an `ActionFormer` as OpenTAD's; the inverse of `head_from_opentad`."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".gamma"):
            value = value.reshape(() if key.startswith("scales.") else (1, -1, 1))
        elif value.ndim == 2:
            value = value.unsqueeze(-1)
        converted[rename_key(key, invert_map(HEAD))] = value
    return converted


def rename_key(key: str, names: KeyMap) -> str:
    """Return a tensor's name with every part of theirs replaced by ours."""
    for theirs, ours in names:
        key = key.replace(theirs, ours)
    return key


def invert_map(names: KeyMap) -> KeyMap:
    """Return the map from ours to theirs."""
    return [(ours, theirs) for theirs, ours in reversed(names)]
