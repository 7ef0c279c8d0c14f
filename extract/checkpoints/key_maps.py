"""How others call the tensors of a transformer, an adapter and a head, and how we call them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

Names = Sequence[tuple[str, str]]
"""Theirs and ours; each is replaced wherever it stands in a name."""

TRUNKS: dict[str, tuple[str, Names]] = {  # layouts by their patch embedding
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
MMACTION: Names = TRUNKS["patch_embed.projection.weight"][1]
ADAPTERS: Names = (
    (".dwconv.", ".depthwise."),
    (".conv.", ".pointwise."),
    (".down_proj.", ".down."),
    (".up_proj.", ".up."),
)
HEAD: Names = (  # every name occurs once in a key; the parameter's comes last
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

IMAGE_RESNET: Names = (  # of timm and torchvision; those of blocks first, which have a dot in front
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
TADA2D: Names = (
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
TADA_CONVNEXT: Names = (
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
    """Rename and reshape the head's tensors of an OpenTAD ActionFormer for `ActionFormer`.

    Unknown names pass unchanged, for strict loading to complain about.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        key = renamed(key, HEAD)
        if key.endswith(".gamma"):
            value = value.flatten()  # [1, C, 1] or a scalar
        elif value.ndim == 3 and value.shape[-1] == 1:
            value = value.squeeze(-1)  # a linear layer written as a convolution
        converted[key] = value
    return converted


def head_to_opentad(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `head_from_opentad`."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".gamma"):
            value = value.reshape(() if key.startswith("scales.") else (1, -1, 1))
        elif value.ndim == 2:
            value = value.unsqueeze(-1)
        converted[renamed(key, turned(HEAD))] = value
    return converted


def renamed(key: str, names: Names) -> str:
    """Return a name with all of theirs in it replaced by ours."""
    for theirs, ours in names:
        key = key.replace(theirs, ours)
    return key


def turned(names: Names) -> Names:
    """Return the table that leads back."""
    return [(ours, theirs) for theirs, ours in reversed(names)]
