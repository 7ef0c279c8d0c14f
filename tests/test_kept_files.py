"""Files that an earlier version wrote are read by this one: one of each kind is kept."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache.store import Store
from cache.upkeep.verify import verify
from tests.conftest import GOLDEN
from tests.store_writer import activation
from train.detector import Detector
from train.recognition.recogniser import Recogniser

KEPT = GOLDEN / "kept"  # written by commit d0538b5, the outputs with torch 2.14


def pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_a_detectors_checkpoint_gives_what_it_gave() -> None:
    detector, outputs = (
        Detector.from_checkpoint(KEPT / "detector.pt"),
        load_file(KEPT / "outputs.safetensors"),
    )
    assert detector.classes == ("run", "jump")
    mask, reflection = torch.ones(1, 64, dtype=torch.bool), torch.tensor([63.0])
    (output,) = detector([pixels(1, 3, 64, 64, 64)], mask, reflection)
    torch.testing.assert_close(output.flat()[0], outputs["scores"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.flat()[1], outputs["distances"], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_recognisers_checkpoint_gives_what_it_gave() -> None:
    recogniser = Recogniser.from_checkpoint(KEPT / "recogniser.pt")
    expected = load_file(KEPT / "outputs.safetensors")["recogniser"]
    found = recogniser.network(pixels(1, 3, 5, 32, 32))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_store_holds_what_it_held(tmp_path: Path, mode: str) -> None:
    """Four activations in arrays, and two in the journal of a process that was killed."""
    shutil.copytree(KEPT / "store", tmp_path / "store")
    with Store(tmp_path / "store", "a" if mode == "a" else "r") as store:
        for number in range(6):
            address, rows = activation(number)
            assert torch.equal(store.read(address), rows)
        assert not list(verify(store))
