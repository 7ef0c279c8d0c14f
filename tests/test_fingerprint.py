"""Fingerprints: what changes them, from where on, and what does not."""

import pytest
import torch
from torch import Tensor

from cache.fingerprint import chain_fingerprints

SETTINGS = {"size": 160, "precision": "fp32"}


def stages() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    names = ("weight", "bias", "gamma")
    return [{name: torch.randn(4, 3, generator=generator) for name in names} for _ in range(5)]


def test_a_change_counts_from_its_stage_on() -> None:
    before = chain_fingerprints(SETTINGS, stages())
    assert len(set(before)) == 5 and all(len(name) == 32 for name in before)
    for k in range(5):
        for name in ("weight", "bias", "gamma"):
            changed = stages()
            value = changed[k][name][3, 2]
            changed[k][name][3, 2] = torch.nextafter(value, value + 1)
            after = chain_fingerprints(SETTINGS, changed)
            assert after[:k] == before[:k]
            assert not set(after[k:]) & set(before)


@pytest.mark.parametrize("change", [{"size": 161}, {"precision": "bf16"}, {"more": None}])
def test_settings_count_for_all(change: dict[str, object]) -> None:
    assert not set(chain_fingerprints(SETTINGS | change, stages())) & set(
        chain_fingerprints(SETTINGS, stages())
    )


def test_what_does_not_count() -> None:
    turned = [dict(reversed(stage.items())) for stage in stages()]
    strided = [{name: t.t().contiguous().t() for name, t in stage.items()} for stage in stages()]
    settings = dict(reversed(SETTINGS.items()))
    assert (
        chain_fingerprints(settings, turned)
        == chain_fingerprints(SETTINGS, strided)
        == chain_fingerprints(SETTINGS, stages())
    )


def test_names_shapes_and_dtypes_count() -> None:
    plain = [{"a": torch.zeros(4), "b": torch.zeros(4)}]
    others = [
        [{"a": torch.zeros(4), "c": torch.zeros(4)}],
        [{"a": torch.zeros(2, 2), "b": torch.zeros(4)}],
        [{"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(4)}],
        [{"a": torch.zeros(4, dtype=torch.bfloat16), "b": torch.zeros(4)}],
        [{"a": torch.zeros(4)}, {"b": torch.zeros(4)}],
    ]
    names = [chain_fingerprints(SETTINGS, case)[-1] for case in (plain, *others)]
    assert len(set(names)) == len(names)


def test_scalars_and_empty_stages_have_names() -> None:
    assert (
        len(set(chain_fingerprints({}, [{}, {"x": torch.tensor(1.0)}, {"x": torch.zeros(0)}]))) == 3
    )
