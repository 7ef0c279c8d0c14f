"""Weights and detectors on the Hugging Face Hub, for which a server on this machine stands in."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from configs.loader import load
from extract.checkpoints import hub as module
from extract.checkpoints.hub import folder_of, locate, locate_named
from extract.checkpoints.tensor_files import read_tensors
from tests.conftest import REPOSITORY
from tests.hub_server import Hub, Repository, serve
from train.config import Experiment
from train.detector import Detector
from train.published import backbone_licence

DEMO = "configs/e2e/demo/forward.yaml"
TINY = "configs/e2e/demo/videomae_tiny.safetensors"
CLASSES = ("opens", "closes: slowly", "größer")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub and an empty cache for it; huggingface_hub has read its settings already."""
    from huggingface_hub import constants, file_download

    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for holder in (constants, file_download):  # before 1.0 the second has its own
            monkeypatch.setattr(holder, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        module._download.cache_clear()
        yield server
    module._download.cache_clear()


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    made = Detector(load(Experiment, REPOSITORY / DEMO), CLASSES).eval()
    made.load_pretrained()
    return made


def a_file(tmp_path: Path, **tensors: torch.Tensor) -> bytes:
    save_file(tensors, tmp_path / "made.safetensors")
    return (tmp_path / "made.safetensors").read_bytes()


def test_a_repository_is_a_folder_of_weights(hub: Hub, tmp_path: Path) -> None:
    content = a_file(tmp_path, a=torch.ones(2))
    settings = json.dumps({"num_attention_heads": 6}).encode()
    files = {"model.safetensors": content, "config.json": settings, "README.md": b"", "x.bin": b""}
    hub.repositories["MCG-NJU/videomae-small-finetuned-kinetics"] = Repository(files)
    commit = hub.repositories["MCG-NJU/videomae-small-finetuned-kinetics"].commit
    found = read_tensors("videomae-small")
    assert found.tensors["a"].tolist() == [1, 1] and found.settings["num_attention_heads"] == 6
    name = f"MCG-NJU/videomae-small-finetuned-kinetics@{commit}/model.safetensors"
    assert found.name == f"hf://{name}"
    got = [each for each in hub.asked if each.startswith("GET") and "/resolve/" in each]
    assert len(got) == 2  # nothing else of the repository
    asked = len(hub.asked)
    # pathlib makes one slash of two; what one process has located it does not ask for again.
    assert read_tensors(Path("videomae-small")).name == found.name and len(hub.asked) == asked


def test_shards_come_with_their_index(hub: Hub, tmp_path: Path) -> None:
    one, two = a_file(tmp_path, a=torch.ones(1)), a_file(tmp_path, b=torch.zeros(1))
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()
    files = {"1.safetensors": one, "2.safetensors": two, "model.safetensors.index.json": index}
    hub.repositories["org/name"] = Repository(files)
    assert read_tensors(Path("hf://org/name")).tensors.keys() == {"a", "b"}


def test_revisions_and_files_are_chosen(hub: Hub, tmp_path: Path) -> None:
    old = {"sub/x.safetensors": a_file(tmp_path, a=torch.zeros(1))}
    new = {"sub/x.safetensors": a_file(tmp_path, a=torch.ones(1))}
    repository = hub.repositories["org/name"] = Repository(new, {"v1": old})
    for revision, value in (("@v1", 0), ("", 1), (f"@{repository.commit}", 1)):
        assert read_tensors(f"hf://org/name{revision}/sub/x.safetensors").tensors["a"] == value
    pinned = locate_named("hf://org/name/sub/x.safetensors").name
    assert pinned == f"hf://org/name@{repository.commit}/sub/x.safetensors"


def test_what_cannot_be_had_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/gated"] = Repository(gated=True)
    hub.repositories["org/text"] = Repository({"README.md": b""})
    for name, told in {
        "hf://org/gated": "must grant you access: ask for it at .*/org/gated, then `hf auth login`",
        "hf://org/nothing": "has no repository org/nothing, or a private one",
        "hf://org/text@v2": "org/text has no revision v2",
        "hf://org/text@main": "none of detector.pt, .*: hf://org/text@main/FILE",
        "hf://org/text": "none of detector.pt, model.safetensors, .*: hf://org/text/FILE",
        "hf://org/text/x.pth": "org/text has no file x.pth",
        "hf://org": r"write hf://org/name\[@revision\]",
        "hf://or--g/..x": "not a name on the Hub",
    }.items():
        for source in (name, Path(name)):  # a Path keeps one of two slashes
            with pytest.raises(ValueError, match=told) as error:
                locate(source)
            assert "\n" not in str(error.value) and "hf:/o" not in str(error.value)


def test_a_short_name_that_is_misspelt_is_told() -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at videomae-smal; did you mean videomae-"):
        read_tensors("videomae-smal")


@pytest.mark.slow
def test_a_filled_cache_is_enough_offline(hub: Hub, tmp_path: Path) -> None:
    files = {"model.safetensors": a_file(tmp_path, a=torch.ones(1)), "config.json": b"{}"}
    hub.repositories["org/name"] = Repository(files)
    locate("hf://org/name")
    asked = len(hub.asked)
    code = "import sys; from extract.checkpoints.hub import locate_named\n"
    code += "print(locate_named(sys.argv[1]).name)"

    def run(name: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
        return subprocess.run(
            [sys.executable, "-c", code, name],
            cwd=REPOSITORY,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=120,
        )

    commit = hub.repositories["org/name"].commit
    done = run("hf://org/name", HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == f"hf://org/name@{commit}/model.safetensors", done.stderr
    assert len(hub.asked) == asked
    done = run("hf://org/other", HF_HUB_OFFLINE="1")
    told = done.stderr.splitlines()[-1]
    assert "HF_HUB_OFFLINE is set" in told and "unset it" in told
    done = run("hf://org/other/a.pt", HF_HUB_OFFLINE="1")
    assert "has no a.pt of it: unset it" in done.stderr.splitlines()[-1]
    done = run("hf://org/other", HF_ENDPOINT="http://127.0.0.1:9")  # where nobody listens
    assert "http://127.0.0.1:9 does not answer" in done.stderr.splitlines()[-1], done.stderr


def test_files_that_come_with_the_code_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(TINY) == REPOSITORY / TINY and read_tensors(TINY).name == TINY
    (tmp_path / TINY).parent.mkdir(parents=True)
    (tmp_path / TINY).touch()
    assert locate(TINY) == Path(TINY)
    assert locate("nowhere.pt") == Path("nowhere.pt") and folder_of(Path("a/b.pt")) == Path("a")
    assert folder_of(Path("hf://org/name")) == Path()


def same(one: Detector, other: Detector) -> bool:
    theirs = other.state_dict()
    return (one.config, one.classes) == (other.config, other.classes) and all(
        torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items()
    )


def card_of(text: str) -> tuple[dict[str, Any], str]:
    _, about, rest = text.split("---\n", 2)
    return yaml.safe_load(about), rest


def test_a_detector_is_saved_as_a_folder(detector: Detector, tmp_path: Path) -> None:
    detector.frame_rates = (24.0, 30.0)
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"average_mAP": 0.5, "mAP@0.5": 0.25, "streams": {"a": {}}}))
    folder = tmp_path / "my own"
    detector.save_pretrained(folder, metrics)
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "config.yaml", "detector.pt")
    }
    again = Detector.from_pretrained(folder)
    assert same(detector, again) and again.frame_rates == (24.0, 30.0) and not again.training
    assert load(Experiment, folder / "config.yaml") == detector.config
    size = sum(tensor.nbytes for tensor in detector.state_dict().values())
    assert (folder / "detector.pt").stat().st_size < 1.1 * size + 100_000
    about, text = card_of((folder / "README.md").read_text())
    shown = f"evaluate/detect.py VIDEO.mp4 --checkpoint {shlex.quote(str(folder))}\n"
    assert shown in text and f"palindrome detect VIDEO.mp4 --checkpoint '{folder}'\n" in text
    assert "from palindrome.train.detector import Detector" in text
    assert "- Input: windows of 10.7 s at 64 × 64\n" in text  # 128 steps, 12 a second
    assert about["license"] == "apache-2.0" and "temporal-action-detection" in about["tags"]
    (result,) = about["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "average_mAP", "value": 0.5}
    assert "opens, closes: slowly, größer" in text and "| mAP@0.5 | 0.2500 |" in text
    assert f'from_pretrained("{folder}")' in text
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not a metrics.json of evaluate/run.py"):
        detector.save_pretrained(tmp_path / "other", tmp_path / "no.json")


def test_licences_are_those_of_the_pretrained_weights() -> None:
    for weights, licence in {
        TINY: "apache-2.0",
        "videomae-base": "cc-by-nc-4.0",
        "hf://MCG-NJU/videomae-base": "cc-by-nc-4.0",
        "data/vit-small-p16_videomae-k400.pth": "cc-by-nc-4.0",
        "mine.pt": "other",
        None: "other",
    }.items():
        assert backbone_licence(weights)[0] == licence


def test_a_detector_goes_to_the_hub_and_comes_back(
    hub: Hub, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detector.push_to_hub("me/mine", private=True) == f"{hub.url}/me/mine"
    repository = hub.repositories["me/mine"]
    assert repository.private
    assert {"README.md", "config.yaml", "detector.pt"} <= repository.files.keys()
    about, text = card_of(repository.files["README.md"].decode())
    assert about["library_name"] == "palindrome" and 'from_pretrained("hf://me/mine")' in text
    assert "--checkpoint hf://me/mine" in text
    assert same(detector, Detector.from_pretrained("hf://me/mine"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match=r"me/other: cannot be uploaded: .*`hf auth login`"):
        detector.push_to_hub("me/other")


def test_a_pickle_that_would_run_code_is_refused(hub: Hub, tmp_path: Path) -> None:
    torch.save({"format": "palindrome-2", "x": subprocess.Popen}, tmp_path / "evil.pt")
    hub.repositories["org/evil"] = Repository({"detector.pt": (tmp_path / "evil.pt").read_bytes()})
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        Detector.from_pretrained("hf://org/evil")
