"""The seam and the code: activations that other code, libraries or modules gave are not read."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.module import register_module_forward_hook

from cache.store import Store
from extract.activations.activations import Activations
from extract.activations.adoption import differences
from extract.activations.fingerprints import describe, fingerprints, settings
from extract.backbone import adapters, backbone, videomae
from extract.backbone.backbone import Backbone
from extract.backbone.tada_backbone import TAdaBackbone
from extract.sampling import transforms
from extract.settings.backbone import BackboneConfig, Cut, TAdaSize
from tests.conftest import SHARDS_ON_CPUS
from tests.encodings import write_numbered
from tests.test_activations import CUTS, EXACT, PIXELS, TRUNK, fresh, new_backbone, seam, spans_of
from tests.test_backbone import relative
from tests.test_code_digest import load_source


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache", "a") as opened:
        yield opened


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what puts an edited copy of the adapters in the place of the adapters."""
    loaded: list[str] = []

    def edit(*changes: tuple[str, str]) -> None:
        assert adapters.__file__ is not None
        text = Path(adapters.__file__).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        name = f"my_adapters_{len(loaded)}"
        loaded.append(name)
        module = load_source(tmp_path, name, text)
        monkeypatch.setattr(backbone, "TemporalAdapter", module.TemporalAdapter)

    yield edit
    for name in loaded:
        del sys.modules[name]


def names(made: Any) -> dict[Cut, str]:
    return fingerprints(made, settings(made.config, PIXELS, "fp32"))


def test_an_edited_adapter_does_not_read_what_the_former_one_gave(
    tmp_path: Path, store: Store, edited: Any
) -> None:
    video = tmp_path / "clip.mp4"
    write_numbered(video, 150)
    span = spans_of(video)[0]
    before = seam(store, new_backbone())
    stored = before.get(span)
    before.close()

    edited(("F.gelu(hidden)", "F.relu(hidden)"))
    changed = new_backbone()
    after = seam(store, changed)
    found = after.get(span)
    assert after.counts.full == 1 and torch.equal(found, fresh(changed, span))
    assert relative(found, stored) > 1e-3

    # Comments and docstrings in a file of another name are no change.
    edited(("y = F.gelu(hidden)", "# Smooth.\n\n        y = F.gelu(hidden)  # as in the paper"))
    again = seam(store, new_backbone())
    assert torch.equal(again.get(span), stored) and again.counts.hits == 1


def test_code_counts_from_where_it_is_used(edited: Any) -> None:
    before = names(new_backbone(adapters_from_block=2))
    edited(("F.gelu(hidden)", "F.relu(hidden)"))
    after = names(new_backbone(adapters_from_block=2))
    assert [before[cut] == after[cut] for cut in CUTS] == [True, True, False, False]


def test_a_network_is_not_stale_by_the_code_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BackboneConfig(TRUNK, "tada2d", TAdaSize((1, 1), 8), mode="frozen")
    torch.manual_seed(0)
    convolutions, transformer = TAdaBackbone(config).eval(), new_backbone()
    before = names(convolutions), names(transformer)
    monkeypatch.setattr(videomae.Attention, "forward", lambda self, x: self.proj(x))
    assert names(convolutions) == before[0]
    assert not set(names(transformer).values()) & set(before[1].values())


def test_pixels_code_and_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    made = new_backbone()
    of = settings(made.config, PIXELS, "fp32")
    before = describe(made, of)["features"]
    seen = [names(made)["features"]]

    def note(expected: str) -> None:
        seen.append(names(made)["features"])
        lines = differences(before, describe(made, of)["features"])
        assert any(expected in line for line in lines), lines

    with monkeypatch.context() as patch:
        patch.setattr(av, "__version__", "0.1.2")
        note(f"libraries.av was {before['libraries']['av']}, is 0.1.2")
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "shrink_frames", lambda frames, to: frames[:, :32, :32])
        patch.setattr("extract.sampling.window_frames.shrink_frames", transforms.shrink_frames)
        note("computes otherwise")
    torch.set_float32_matmul_precision("high")
    try:
        note("flags.float32_matmul_precision was highest, is high")
    finally:
        torch.set_float32_matmul_precision("highest")
    kept = made.mean.clone()
    made.mean[0, 0] += 1
    note("mean was [123.")
    made.mean.copy_(kept)
    assert len(set(seen)) == len(seen)
    assert names(made)["features"] == seen[0]
    assert not differences(before, describe(made, of)["features"])


def test_pixel_scale_counts_as_it_is(store: Store) -> None:
    made = new_backbone()
    activations = seam(store, made)
    before = activations.cached_cuts()
    made.std[0, 2] *= 1.01
    after = activations.cached_cuts()
    assert not {p.fingerprint for p in before.values()} & {p.fingerprint for p in after.values()}


class Doubled(nn.Module):
    """A user's own layer."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Shift(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


def test_replaced_modules_and_attributes_count_from_their_block_on(store: Store) -> None:
    made = new_backbone()
    activations = seam(store, made)

    def now() -> list[str]:
        places = activations.cached_cuts()
        return [places[cut].fingerprint for cut in CUTS]

    seen = [now()]
    block = made.trunk.blocks[1]
    block.mlp.act = nn.ReLU().eval()  # type: ignore[union-attr]
    seen.append(now())
    block.mlp.act = Doubled().eval()  # type: ignore[union-attr]
    seen.append(now())
    block.mlp.act = Doubled(3.0).eval()  # type: ignore[union-attr]
    seen.append(now())
    block.norm2.eps = 1e-3  # type: ignore[union-attr]
    seen.append(now())
    adapter = made.adapters["1"]
    adapter.mode = "sum"  # type: ignore[assignment]
    seen.append(now())
    adapter.mode = "mean"  # type: ignore[assignment]
    seen.append(now())
    adapter._mix = nn.functional.relu  # type: ignore[assignment]
    seen.append(now())
    adapter._mix = lambda hidden: hidden * 2  # type: ignore[assignment]
    seen.append(now())
    adapter._mix = lambda hidden: hidden * 3  # type: ignore[assignment]
    seen.append(now())
    for by in (2.0, 3.0):
        adapter._mix = Doubled(by).eval().forward  # type: ignore[assignment]
        seen.append(now())
        adapter.scale = np.float32(by)  # type: ignore[assignment]
        seen.append(now())
        adapter.options = SimpleNamespace(by=np.array([by]))  # type: ignore[assignment]
        seen.append(now())
    adapter.activation = torch.relu  # type: ignore[assignment]
    seen.append(now())
    adapter.activation = torch.sigmoid  # type: ignore[assignment]
    seen.append(now())
    nn.utils.parametrize.register_parametrization(adapter.down, "weight", Shift())  # type: ignore[arg-type]
    adapter.eval()
    seen.append(now())
    assert len({cuts[0] for cuts in seen}) == 1
    for place in (1, 2, 3):
        assert len({cuts[place] for cuts in seen}) == len(seen)


def test_what_cannot_be_named_is_refused(store: Store) -> None:
    def hooked(made: Backbone) -> None:
        made.adapters["1"].register_forward_hook(lambda module, inputs, output: output + 1)

    def hooked_before(made: Backbone) -> None:
        made.trunk.blocks[2].register_forward_pre_hook(lambda module, inputs: inputs)

    def replaced(made: Backbone) -> None:
        made.adapters["0"].forward = lambda x, recompute="none": x

    def compiled(made: Backbone) -> None:
        made.trunk.blocks[0].compile(backend="eager")

    def training(made: Backbone) -> None:
        made.trunk.blocks[0].train()

    def hidden(made: Backbone) -> None:
        made.adapters["0"].layers = [nn.Linear(2, 2)]  # type: ignore[assignment]

    for change, what in (
        (hooked, r"adapters\.1 has a forward hook"),
        (hooked_before, r"trunk\.blocks\.2 has a forward hook"),
        (replaced, r"adapters\.0 has a `forward` of its own"),
        (compiled, r"trunk\.blocks\.0 has a compiled"),
        (training, r"trunk\.blocks\.0 is in training mode"),
        (hidden, r"adapters\.0\.layers has a module"),
    ):
        activations = seam(store, new_backbone())
        activations.cached_cuts()
        change(activations.backbone)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=what):
            activations.cached_cuts()
    handle = register_module_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="hooks of all modules"):
        seam(store, new_backbone()).cached_cuts()
    handle.remove()
    seam(store, new_backbone()).cached_cuts()


@SHARDS_ON_CPUS
def test_weights_that_are_spread_over_processes_count_as_whole_ones(
    store: Store, tmp_path: Path
) -> None:
    """FSDP hangs hooks on modules and gives them other classes; the numbers are the same."""
    made = new_backbone()
    expected = seam(store, made).cached_cuts()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (*made.trunk.blocks, *made.adapters.values(), made):
            # As `gathered` does, which on a CPU could not give their memory back afterwards.
            fully_shard(part, mesh=mesh).unshard()
        assert isinstance(made, FSDPModule)
        assert seam(store, made).cached_cuts() == expected
    finally:
        torch.distributed.destroy_process_group()


def exchange(one: Tensor, other: Tensor) -> None:
    """Let two tensors, or parts of them, change their values."""
    with torch.no_grad():
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def seen_changes(activations: Activations, changes: list[tuple[Tensor, Tensor]]) -> None:
    """Exchange values pair by pair: each exchange must give other names."""
    seen = [activations.cached_cuts()["features"].fingerprint]
    for one, other in changes:
        assert not torch.equal(one, other)
        exchange(one, other)
        seen.append(activations.cached_cuts()["features"].fingerprint)
    assert len(set(seen)) == len(seen)


def test_values_that_change_places_are_seen(store: Store) -> None:
    made = new_backbone()
    weight = made.trunk.blocks[0].get_parameter("mlp.fc1.weight").data
    flat = weight.view(-1)
    # Four values of a square in the grid of the quick look: sums over rows and columns stay.
    flat[0], flat[5], flat[2048], flat[2053] = 1.0, 2.0, 2.0, 1.0
    activations = seam(store, made)
    before = activations.cached_cuts()["features"].fingerprint
    flat[0], flat[5], flat[2048], flat[2053] = 2.0, 1.0, 1.0, 2.0
    assert activations.cached_cuts()["features"].fingerprint != before
    state = {name: tensor.data for name, tensor in made.named_parameters()}
    seen_changes(
        activations,
        [
            (flat[10:11], flat[11:12]),
            (flat[20:21], flat[20 + 1024 : 21 + 1024]),
            (state["adapters.0.up.weight"][0, 0], state["adapters.1.up.weight"][0, 0]),
            (state["trunk.blocks.0.norm1.bias"], state["trunk.blocks.0.norm1.weight"]),
            (state["trunk.blocks.1.attn.q_bias"][:1], state["trunk.blocks.1.norm1.weight"][:1]),
        ],
    )


def test_running_statistics_are_seen(store: Store) -> None:
    config = BackboneConfig(TRUNK, "tada2d", TAdaSize((1, 1), 8), mode="frozen")
    torch.manual_seed(0)
    made = TAdaBackbone(config).eval()
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    first, second = norms[0], norms[1]
    assert first.running_mean is not None and first.running_var is not None
    assert second.running_mean is not None
    activations = Activations(store, made, PIXELS, "fp32", EXACT, "weights.pt")
    seen_changes(
        activations,
        [
            (first.running_mean[0], first.running_mean[1]),
            (first.running_mean[0], second.running_mean[0]),
            (first.running_mean, first.running_var),
        ],
    )
    before = activations.cached_cuts()["features"].fingerprint
    first.eps = 1e-2
    assert activations.cached_cuts()["features"].fingerprint != before


def test_second_adapters_are_seen(store: Store) -> None:
    made = new_backbone(second_from_block=1)
    for adapter in made.second.values():
        nn.init.normal_(adapter.up.weight, std=0.1)  # type: ignore[union-attr,arg-type]
    activations = seam(store, made)
    first = made.get_parameter("adapters.2.up.weight")
    second = made.get_parameter("second.2.up.weight")
    before = activations.cached_cuts()
    seen_changes(activations, [(first, second), (first[0, 0], second[0, 0])])
    after = activations.cached_cuts()
    assert [before[cut] == after[cut] for cut in CUTS] == [True, True, False, False]
    # Without second adapters the blocks below them are the same.
    without = new_backbone()
    without.load_state_dict(
        {n: t for n, t in made.state_dict().items() if ".second" not in f".{n}"}
    )
    alone = names(without)
    assert [alone[cut] == before[cut].fingerprint for cut in CUTS] == [True, False, False, False]


def test_two_streams_on_one_trunk_are_told_apart(store: Store) -> None:
    one = new_backbone()
    torch.manual_seed(1)
    other = Backbone(one.config, one.trunk)
    for adapter in other.adapters.values():
        nn.init.normal_(adapter.up.weight, std=0.2)  # type: ignore[union-attr,arg-type]
    streams = [seam(store, one), seam(store, other.eval())]

    def now() -> list[str]:
        return [stream.cached_cuts()["features"].fingerprint for stream in streams]

    before = now()
    assert before[0] != before[1]
    for k in one.adapters:
        for name, tensor in one.adapters[k].named_parameters():
            exchange(tensor, other.adapters[k].get_parameter(name))
    assert now() == before[::-1]
    with torch.no_grad():
        one.adapters["0"].get_parameter("gamma").add_(1)
    changed = now()
    assert changed[0] != before[1] and changed[1] == before[0]
    with torch.no_grad():
        one.trunk.blocks[0].get_parameter("norm1.bias").add_(1)
    assert not {*now()} & {*changed}
