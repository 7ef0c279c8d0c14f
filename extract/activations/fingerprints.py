"""What activations depend on: settings, code, libraries, structure and weights, by cut.

A description holds all of it in a form that people can read, and a fingerprint is its hash. So two
fingerprints that differ differ in a line of their descriptions, which the store keeps.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from cache.code_digest import code_digest, is_plain, plain, read_loaded_sources, versions
from cache.fingerprint import chain_fingerprints, fingerprint_of
from extract.activations.inputs import job_pieces
from extract.activations.passes import Pass
from extract.activations.stored import ADOPTED_AS
from extract.backbone.backbone import Backbone
from extract.backbone.imported import AnyBackbone, Imported, describe_imported
from extract.backbone.tada_backbone import TAdaBackbone
from extract.identity.computing import COMPUTES_NOTHING, LIBRARIES
from extract.settings.backbone import BackboneConfig, Cut, Precision, TAdaSize, TrunkConfig
from extract.settings.pixels import PixelConfig
from extract.tada.tada2d import TAda2DConfig

Description = dict[str, Any]
"""All that the activations at one cut depend on besides the frames, for JSON."""

PIPELINE = (job_pieces, Pass)
"""From a file to a backbone's input, and through the backbone; the backbone itself is looked at."""

MOVES_NUMBERS = {"numpy", "tqdm"}  # libraries that compute nothing of an activation either

# Attributes of modules that only training asks for, or that are made of the weights (`working`).
TRAINING_ONLY = {"drop_rates", "drop", "momentum", "recompute", "working"}
OF_ALL_MODULES = vars(nn.Module()).keys()
OF_SHARDING = ("__composable_api_state_key", "_fsdp", "_is_fsdp")  # beginnings of FSDP's own
# Settings that only training, loading or the choice of what learns asks for; and those that decide
# which modules there are, and the pixels' scale: they are seen in the network itself.
SIZES = (BackboneConfig, TrunkConfig, TAda2DConfig)
SEEN_OR_UNUSED = {
    *("weights", "recompute", "trainable_from_block", "mode", "drop_path", "dropout"),
    *("adapter_ratio", "adapters_from_block", "second_from_block", "mean", "std"),
    *("imported", "imported_width"),
}
# In a description for people, and to build such a backbone again; no part of the fingerprint.
NOT_HASHED = {"modules", "backbone", ADOPTED_AS}
SETTINGS = ("pixels", "precision", "trunk")
KINDS = (
    *("network", "mode", "adapter_ratio", "adapters_from_block"),
    "second_from_block",
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

read_loaded_sources()


def settings(config: BackboneConfig, pixels: PixelConfig, precision: Precision) -> Description:
    """Return the settings that an activation depends on."""
    if config.mode == "imported":
        return describe_imported(str(config.imported), config.imported_width or 0)
    if config.network == "tada2d":
        trunk = {"network": config.network, **asdict(config.tada)}
    else:
        trunk = asdict(config.trunk)
        del trunk["drop_path"]  # no part of a pass in eval mode
    taken = {"size": pixels.size, "take": "short side, centre", "antialias": pixels.antialias}
    return {"pixels": taken, "precision": precision, "trunk": trunk}


def fingerprints(backbone: AnyBackbone, of: Description) -> dict[Cut, str]:
    """Return the fingerprint of every cut.

    Args:
        of: what `settings` returned.
    """
    return {cut: fingerprint(each) for cut, each in describe(backbone, of).items()}


def fingerprint(description: Description) -> str:
    """Return the fingerprint of what is described."""
    if "imported" in description:  # of weights that nobody here knows
        return chain_fingerprints(description, [{}])[0]
    return fingerprint_of({k: v for k, v in description.items() if k not in NOT_HASHED})


def describe(backbone: AnyBackbone, of: Description) -> dict[Cut, Description]:
    """Return all that activations depend on, by cut.

    Args:
        of: what `settings` returned.
    """
    if isinstance(backbone, Imported):
        return {"features": of}
    config, stages = backbone.config, _stages(backbone.config)
    tensors: dict[Cut, dict[str, Tensor]] = {stage: {} for stage in stages}
    if "ladder" in stages:  # other numbers than any other cut's, of the same weights
        tensors["ladder"] = {"ladder.blocks": torch.tensor(config.adapted_blocks)}
    for name, tensor in tensors_of(backbone).items():
        tensors[_stage(name)][name] = tensor
    weights = dict(zip(stages, chain_fingerprints({}, tensors.values()), strict=True))
    parts: dict[Cut, dict[str, Any]] = {stage: {} for stage in stages}
    for name, kind, attributes in structure(backbone):
        parts[_stage(name)][name] = [code_digest([kind], COMPUTES_NOTHING).whole, attributes]
    common = {**of, **environment(backbone)}
    common |= {name: getattr(backbone, name).flatten().tolist() for name in ("mean", "std")}
    found: dict[Cut, Description] = {}
    structures = ""
    for stage in stages:
        structures = fingerprint_of({"before": structures, "modules": parts[stage]})
        found[stage] = {**common, "structure": structures, "weights": weights[stage]}
    return {cut: found[cut] for cut in config.cuts}


def environment(backbone: AnyBackbone) -> Description:
    """Return what an activation depends on besides settings and weights: code, libraries, flags."""
    config = backbone.config
    pipeline = code_digest(PIPELINE, COMPUTES_NOTHING)
    kinds = {kind for _, kind, _ in structure(backbone)}
    every = code_digest([*PIPELINE, *kinds], COMPUTES_NOTHING)
    return {
        "code": pipeline.whole,
        "libraries": versions(every.libraries - MOVES_NUMBERS | LIBRARIES),
        "flags": _flags(),
        "modules": {name: digest[:12] for name, digest in every.modules.items()},
        "backbone": {name: getattr(config, name) for name in KINDS},
    }


def empty_description(of: Description) -> Description | None:
    """Return what a backbone as described depends on now, without its weights and structure.

    Returns:
        None where it cannot be built from the description alone.
    """
    if "backbone" not in of:
        return {}
    trunk = dict(of["trunk"])
    try:
        if trunk.pop("network", None) == "tada2d":
            size = TAdaSize(tuple(trunk["blocks"]), trunk["width"])
            config = BackboneConfig(tada=size, **of["backbone"])
        else:
            config = BackboneConfig(TrunkConfig(**trunk), **of["backbone"])
        with torch.device("meta"):
            backbone: AnyBackbone = (
                TAdaBackbone(config) if config.network == "tada2d" else Backbone(config)
            )
    except (TypeError, ValueError, KeyError):  # of settings that are no more
        return None
    return environment(backbone)


def tensors_of(backbone: AnyBackbone) -> dict[str, Tensor]:
    """Return all weights and buffers by name, those that no checkpoint has (mean, std), too."""
    module = _as_module(backbone)
    # No `state_dict`: of weights that are spread over processes it would give this one's share.
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def structure(backbone: AnyBackbone) -> list[tuple[str, type, dict[str, str]]]:
    """Return name, class and attributes of every module in a backbone.

    Raises:
        ValueError: a module keeps others where torch does not find their weights.
    """
    modules = _as_module(backbone).named_modules(remove_duplicate=False)
    return [(name, _class_of(module), _attributes(name, module)) for name, module in modules]


def check_plain(backbone: AnyBackbone) -> None:
    """Raise ValueError if a backbone computes what its classes and weights do not say.

    Parametrizations may stay: their modules and weights are looked at like all others.
    """
    for hooks in (_global_forward_hooks, _global_forward_pre_hooks):
        if hooks:
            _refuse("torch.nn.modules.module", "forward hooks of all modules")
    for name, module in _as_module(backbone).named_modules():
        for kind in HOOKS:
            if any(not _moves_weights(hook) for hook in getattr(module, kind).values()):
                _refuse(name, "a forward hook")
        if "forward" in vars(module):
            _refuse(name, "a `forward` of its own in place of its class's")
        if module._compiled_call_impl is not None:
            _refuse(name, "a compiled forward pass")
        if module.training and not backbone.training:
            raise ValueError(f"the backbone's {name} is in training mode; call .eval() first")


def legacy_fingerprints(backbone: AnyBackbone, of: Description) -> list[str]:
    """Return the fingerprints that weights had before code was part of them, features' the last.

    Args:
        of: an old description: settings alone.
    """
    stages = _stages(backbone.config)
    tensors: dict[Cut, dict[str, Tensor]] = {stage: {} for stage in stages}
    if "ladder" in stages:
        tensors["ladder"] = {"ladder.blocks": torch.tensor(backbone.config.adapted_blocks)}
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        tensors[_stage(name)][name] = tensor
    return chain_fingerprints(
        {name: v for name, v in of.items() if name not in NOT_HASHED}, tensors.values()
    )


def _stages(config: BackboneConfig) -> list[Cut]:
    """Return blocks, ladder and features in the order of a pass, whether or not they are cuts."""
    ladder: list[Cut] = ["ladder"] if "ladder" in config.cuts else []
    return [*range(config.depth), *ladder, "features"]


def _stage(name: str) -> Cut:
    """Return where in a pass a module or tensor is used first."""
    part, number, *_ = *name.removeprefix("trunk.").split("."), ""
    if part == "ladder":
        return "features"
    return int(number) if part in ("blocks", "adapters", "second") and number else 0


def _as_module(backbone: AnyBackbone) -> nn.Module:
    assert isinstance(backbone, nn.Module)
    return backbone


def _class_of(module: nn.Module) -> type:
    """Return a module's class, also where its weights are spread over processes."""
    kind = type(module)
    # Not imported here: it takes a second, and what has not been imported has sharded nothing.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        return kind.__bases__[1]  # the class was made for it, of two bases
    return kind


def _attributes(name: str, module: nn.Module) -> dict[str, str]:
    """Return the attributes of a module that its forward pass may look at."""
    return {
        key: _shown(f"{name}.{key}", value)
        for key, value in vars(module).items()
        if key not in OF_ALL_MODULES
        and key not in TRAINING_ONLY
        and not key.startswith(OF_SHARDING)
    }


def _shown(name: str, value: object) -> str:
    """Return what stands for an attribute's value."""
    if isinstance(value, nn.Module):
        _refuse(name, "a module that torch does not see (register it, or use nn.ModuleList)")
    if isinstance(value, Tensor):
        return chain_fingerprints({}, [{"": value}])[0]
    if is_dataclass(value) and not isinstance(value, type):
        left_out = SEEN_OR_UNUSED if isinstance(value, SIZES) else ()
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left_out}
        return f"{code_digest([type(value)], COMPUTES_NOTHING).whole} {_shown(name, kept)}"
    if isinstance(value, dict):
        return str({str(key): _shown(name, part) for key, part in value.items()})
    if isinstance(value, list | tuple):
        return str([_shown(name, part) for part in value])
    return plain(value) if is_plain(value) else code_digest([value], COMPUTES_NOTHING).whole


def _refuse(name: str, what: str) -> NoReturn:
    raise ValueError(
        f"the backbone's {name or 'root'} has {what}: what it computes cannot be named, so its "
        "activations cannot be stored or read; remove that (make it a module's code), or run "
        "without --cache"
    )


def _moves_weights(hook: object) -> bool:
    """Return whether a hook is torch's own for modules whose weights are spread over processes."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


def _flags() -> dict[str, Any]:
    """Return how exactly torch multiplies, as far as that is a setting of the process."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags: dict[str, Callable[[], object]] = {
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "matmul.allow_tf32": lambda: matmul.allow_tf32,
        # Where there is no GPU it changes no number, whoever has set it.
        "cudnn.allow_tf32": lambda: cudnn.allow_tf32 and torch.cuda.is_available(),
        # "none", as at the start, is as exact as "ieee", as after setting it.
        "matmul.fp32_precision": lambda: matmul.fp32_precision.replace("none", "ieee"),
        "cudnn.fp32_precision": lambda: cudnn.fp32_precision.replace("none", "ieee"),
    }
    return {name: _asked(flag) for name, flag in flags.items()}


def _asked(flag: Callable[[], object]) -> object:
    try:
        return flag()
    except (AttributeError, RuntimeError):  # not in this version, or set in the other way
        return None
