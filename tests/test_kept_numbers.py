"""Activations that were kept, and what they depended on: do numbers change under fingerprints?

python -m tests.test_kept_numbers      # keeps those of the present code
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cache.store import Store
from extract.activations.activations import Activations
from extract.activations.adoption import differences
from extract.activations.fingerprints import Description, describe, settings
from extract.backbone.backbone import Backbone
from extract.backbone.imported import AnyBackbone
from extract.backbone.tada_backbone import TAdaBackbone
from extract.settings.backbone import BackboneConfig, TAdaSize
from tests.conftest import GOLDEN
from tests.encodings import write_numbered
from tests.test_activations import EXACT, PIXELS, TRUNK, spans_of, video_span

KEPT = GOLDEN / "kept"
VIDEO = KEPT / "numbered.mp4"
TOLERANCE = 1e-4  # of the norm: CPUs round differently, by 1e-6


@dataclass(frozen=True)
class Case:
    """A backbone to keep numbers of."""

    settings: dict[str, Any]
    convolutions: bool = False


CASES = {
    "adapters": Case({"second_from_block": 1}),
    "ladder": Case({"mode": "side", "adapters_from_block": 1}),
    "tada2d": Case({"network": "tada2d", "tada": TAdaSize((1, 1), 8), "mode": "frozen"}, True),
}


def build(case: Case) -> AnyBackbone:
    """Return a backbone with numbers that no version of torch draws differently."""
    config = BackboneConfig(TRUNK, **case.settings)
    made: nn.Module = TAdaBackbone(config) if case.convolutions else Backbone(config)
    draw = np.random.RandomState(0)
    for name, tensor in sorted(made.state_dict().items()):
        if tensor.is_floating_point() and "positions" not in name:
            values = draw.standard_normal(tuple(tensor.shape))
            values = np.abs(values) + 0.5 if "running_var" in name else 0.2 * values
            tensor.copy_(torch.from_numpy(values))
    return made.eval()  # type: ignore[return-value]


def numbers_of(made: AnyBackbone) -> dict[str, Tensor]:
    """Return features of a window and of a whole video, from the file on."""
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "cache", "a") as store:
        activations = Activations(store, made, PIXELS, "fp32", EXACT, "kept")
        spans = {"window": spans_of(VIDEO)[0], "video": video_span(VIDEO, "reversed")}
        found = {kind: activations.get(span).clone() for kind, span in spans.items()}
        activations.close()
    return found


def description_of(made: AnyBackbone) -> Description:
    return describe(made, settings(made.config, PIXELS, "fp32"))["features"]


@pytest.mark.parametrize("name", CASES)
def test_numbers_do_not_change_behind_a_fingerprint(name: str) -> None:
    made = build(CASES[name])
    kept = load_file(KEPT / "numbers.safetensors")
    before = json.loads((KEPT / "numbers.json").read_text())[name]
    now = description_of(made)
    furthest = max(
        float((found - kept[f"{name}.{kind}"]).norm() / kept[f"{name}.{kind}"].norm())
        for kind, found in numbers_of(made).items()
    )
    if furthest <= TOLERANCE:
        return
    if before["libraries"] != now["libraries"]:
        pytest.skip(f"off by {furthest:.2g}, with other libraries: {now['libraries']}")
    changes = differences(before, now)
    if not changes:
        pytest.fail(
            f"the features of '{name}' are off by {furthest:.2g} of their norm, but their "
            "fingerprint is the kept one: caches would be read that are not true. Let what changed "
            "count in extract/activations/fingerprints.py (PIPELINE and the lists below it) or "
            "cache/code_digest.py"
        )
    pytest.fail(
        f"the features of '{name}' are off by {furthest:.2g} of their norm; their fingerprint "
        f"changed with them, so caches miss ({'; '.join(changes)}). If other numbers are meant, "
        "run `python -m tests.test_kept_numbers` and say so in CHANGELOG.md"
    )


def test_a_change_that_no_fingerprint_sees_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code of a library, changed without another version: only numbers tell."""
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, **options: 1.01 * gelu(x, **options))
    kept = load_file(KEPT / "numbers.safetensors")["adapters.window"]
    found = numbers_of(build(CASES["adapters"]))["window"]
    assert float((found - kept).norm() / kept.norm()) > TOLERANCE


def keep() -> None:
    """Write the numbers of the present code."""
    if not VIDEO.exists():
        write_numbered(VIDEO, 40)
    tensors: dict[str, Tensor] = {}
    descriptions: dict[str, Description] = {}
    for name, case in CASES.items():
        made = build(case)
        tensors |= {f"{name}.{kind}": found for kind, found in numbers_of(made).items()}
        descriptions[name] = description_of(made)
    save_file({name: t.contiguous() for name, t in tensors.items()}, KEPT / "numbers.safetensors")
    (KEPT / "numbers.json").write_text(json.dumps(descriptions, indent=1) + "\n")


if __name__ == "__main__":
    keep()
