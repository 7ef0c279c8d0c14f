"""Model soups: one checkpoint whose weights are the mean of several."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_e2e import script
from tests.test_fusion import fused
from train.config import Experiment
from train.detector.model import Detector
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.modeling.config import FusionConfig
from train.soup import mix_checkpoints

CLASSES = ("a", "b")


def write(folder: Path, seed: int, classes: tuple[str, ...] = CLASSES, width: int = 0) -> Path:
    """Write a detector whose head is drawn with a seed; its transformer is the same in all."""
    config = fused(FusionConfig())
    if width:
        config = replace(config, head=replace(config.head, width=width))
    torch.manual_seed(0)
    detector = Detector(config, classes)
    detector.load_pretrained()
    torch.manual_seed(seed)
    for parameter in detector.streams[0].head.parameters():
        parameter.data.normal_()
    path = folder / f"{seed}{len(classes)}{width}/last.pt"
    path.parent.mkdir()
    state = {name: tensor.detach() for name, tensor in detector.state_dict().items()}
    rates = (20.0 + seed, 30.0 + seed)
    save_checkpoint(path, Checkpoint(config, classes, state, state, {}, rates))
    return path


def test_weights_are_the_mean_and_what_is_common_stays_to_the_bit(tmp_path: Path) -> None:
    paths = [write(tmp_path, seed) for seed in range(3)]
    parts = [load_checkpoint(path, Experiment) for path in paths]
    soup = mix_checkpoints([(str(p), part) for p, part in zip(paths, parts, strict=True)])
    assert soup.frame_rates == (20.0, 32.0) and soup.training == {}
    for name, tensor in soup.ema.items():
        three = [part.ema[name] for part in parts]
        assert tensor.dtype == three[0].dtype
        if ".head." in name:
            expected = torch.stack(three).double().mean(0)
            assert torch.allclose(tensor.double(), expected, atol=1e-6)
        else:  # so that stored activations stay true
            assert torch.equal(tensor, three[0])
    assert soup.model.keys() == soup.ema.keys()


def test_what_is_common_hides_no_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two detectors on both sides of the first, which is the mean of all; heads weigh little."""
    whole = load_checkpoint(write(tmp_path, 0), Experiment)
    small = {n: 1e-3 * t if ".head." in n else t for n, t in whole.ema.items()}
    first = whole._replace(ema=small)
    parts = [("0", first)]
    for sign in (1.0, -1.0):
        moved = {n: (1 + sign) * t if ".head." in n else t.clone() for n, t in first.ema.items()}
        parts.append((str(sign), first._replace(ema=moved)))
    mix_checkpoints(parts)
    said = capsys.readouterr().out
    assert "each is 100% of its norm away" in said and "trained apart" in said


def test_the_script_writes_a_detector(tmp_path: Path) -> None:
    one, other = write(tmp_path, 0), write(tmp_path, 1)
    done = script("train/soup.py", "--checkpoint", one, other, "--out", tmp_path / "soup")
    assert done.returncode == 0, done.stderr
    soup = Detector.from_checkpoint(tmp_path / "soup/last.pt")
    first, second = (load_checkpoint(path, Experiment).ema for path in (one, other))
    weights = soup.state_dict()
    name = next(n for n in weights if ".head." in n and n.endswith("weight"))
    assert torch.allclose(weights[name], (first[name] + second[name]) / 2, atol=1e-6)
    assert (tmp_path / "soup/config.yaml").is_file()
    again = script("train/soup.py", "--checkpoint", one, other, "--out", tmp_path / "soup")
    assert again.returncode == 1 and "--resume" in again.stderr
    done = script(
        *("train/soup.py", "--checkpoint", one, other, "--out", tmp_path / "soup", "--resume")
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("other", "message"),
    [({"classes": ("a", "c")}, "classes"), ({"width": 32}, "head.width was 32")],
)
def test_what_cannot_be_mixed_is_refused(
    tmp_path: Path, other: dict[str, object], message: str
) -> None:
    paths = [write(tmp_path, 0), write(tmp_path, 1, **other)]  # type: ignore[arg-type]
    parts = [(str(path), load_checkpoint(path, Experiment)) for path in paths]
    with pytest.raises(ValueError, match=message) as error:
        mix_checkpoints(parts)
    assert str(paths[1]) in str(error.value)


def test_one_checkpoint_is_no_soup(tmp_path: Path) -> None:
    done = script("train/soup.py", "--checkpoint", write(tmp_path, 0), "--out", tmp_path / "soup")
    assert done.returncode == 2 and "two or more" in done.stderr
