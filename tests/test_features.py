"""Features that other networks computed: read, imported, and trained on like cached ones."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from cache.store import Store
from configs.loader import dump, load
from extract import demo
from extract.backbone.backbone import Backbone
from extract.backbone.imported import Imported
from extract.demo import DemoConfig
from extract.feature_files import read_array
from extract.feature_folder import FeatureSource, survey_features
from extract.features import ImportRequest, import_features
from tests.forks import good, script
from tests.test_e2e import DEMO, QUICK
from train.config import Experiment
from train.data.cached import evaluation_spans, training_spans
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import build_detector, init_from_checkpoint
from train.engine.checkpoint import load_checkpoint

FPS, SECONDS, STRIDE = 24, 16, 4
ROWS = FPS * SECONDS // STRIDE


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("boom",)


def written(path: Path, array: NDArray[Any]) -> Path:
    match path.suffix:
        case ".npy":
            np.save(path, array)
        case ".npz":
            np.savez(path, feats=array)
        case ".pt":
            torch.save({"features": torch.from_numpy(array), "fps": 30}, path)
        case _:
            path.write_bytes(pickle.dumps({"feature": array, "name": "x"}))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pkl"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_are_read_as_they_are(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)
    found = read_array(written(tmp_path / f"x{suffix}", array))
    assert found.dtype == array.dtype and np.array_equal(found, array)
    found = read_array(written(tmp_path / f"y{suffix}", array[None]))
    assert np.array_equal(found, array)


@pytest.mark.parametrize("dtype", [">f2", ">f4", "longdouble", ">i2", "uint8"])
def test_numbers_become_those_that_torch_knows(tmp_path: Path, dtype: str) -> None:
    array = np.arange(15).reshape(5, 3).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    found = read_array(tmp_path / "x.npy")
    assert np.array_equal(torch.from_numpy(found).numpy(), array)


def test_an_archive_of_arrays_is_one_under_another_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", rgb=np.ones((5, 3)))
    path = (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    assert read_array(path).shape == (5, 3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pkl", pickle.dumps(Bomb()), r"a\.pkl cannot .* would run code .*builtins\.print"),
        ("a.pkl", pickle.dumps({"x": np.array([Bomb()], object)}), "would run code"),
        ("a.npy", b"", "a.npy cannot be read"),
        ("a.npy", b"\x80\x04no array", "a.npy cannot be read .*does not begin as numpy's files do"),
        ("a.npz", b"\x93NUMPY", "a.npz cannot be read"),
        ("a.npz", b"PK\x03\x04 no archive", "a.npz cannot be read"),
        ("a.pt", b"no archive", "a.pt cannot be read"),
        ("a.pkl", pickle.dumps([1, 2]), r"expected numbers \[T, C\]"),
        ("a.pkl", pickle.dumps({}), r"holds the arrays \(none\)"),
        (
            "a.pkl",
            pickle.dumps({"x": np.ones((2, 2)), "y": np.ones((2, 2))}),
            r"x \(2, 2\), y \(2, 2\); choose one with --key",
        ),
        ("a.pkl", pickle.dumps(np.full((2, 2), np.nan)), "4 of 4 numbers are not finite"),
        ("a.pkl", pickle.dumps(np.array([["a"]])), "expected numbers"),
    ],
)
def test_other_files_are_told(
    tmp_path: Path,
    name: str,
    content: bytes,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_array(tmp_path / name)
    assert "boom" not in capsys.readouterr().out


def test_objects_in_arrays_are_refused(tmp_path: Path) -> None:
    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        save(tmp_path / name, np.array([Bomb()], object))
        with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
            read_array(tmp_path / name)
    torch.save(Bomb(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
        read_array(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos as long as one window, a frozen backbone's features of them, and a head on these."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "videos").mkdir()
    sizes = DemoConfig(shortest=SECONDS, longest=SECONDS, frame_rates=(FPS,))
    places = [("training", k) for k in range(4)] + [("test", k) for k in range(2)]
    database = dict(demo._write_video(folder / "videos", *place, sizes) for place in places)
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    config = folder / "frozen.yaml"
    config.write_text(dump(experiment(folder)))
    good("train/heads.py", "--config", config)
    good("evaluate/run.py", "--checkpoint", folder / "frozen/last.pt", "--cache", folder / "cache")
    return folder


def experiment(folder: Path, *more: str) -> Experiment:
    overrides = [
        *QUICK,
        f"--out={folder / 'frozen'}",
        f"--data.annotations={folder / 'annotations.json'}",
        f"--data.videos={folder / 'videos'}",
        "--data.classes=null",
        "--data.validation_subset=null",
        "--backbone.mode=frozen",
        f"--sampling.window_size={ROWS}",
        "--sampling.scale_factor=2",
        f"--sampling.snippet_stride={STRIDE}",
        "--sampling.fps=null",
        f"--cache.url={folder / 'cache'}",
        "--cache.dtype=float32",
        *more,
    ]
    return load(Experiment, DEMO, overrides)


def exported(study: Path, out: Path, accelerator: Accelerator) -> None:
    """Write what the frozen run was trained and scored on as files, as other programs would."""
    out.mkdir()
    saved = load_checkpoint(study / "frozen/last.pt", Experiment)
    config = saved.config
    with Store.open(study / "cache", "a") as store:
        detector = Detector.restore(saved, "last.pt")
        (activations,) = activations_of(detector, store, ["last.pt"])
        annotations = load_annotations(config.data)
        for subset in ("training", "test"):
            items = load_items(config.data, annotations, subset, accelerator, store)
            spans = (
                training_spans(items, config.sampling, "forward", "video")
                if subset == "training"
                else evaluation_spans(items, 0.5, config.sampling, "forward")
            )
            assert len(spans) == len(items)
            for span in spans:
                rows = activations.cached_cuts()["features"].read(span)
                assert len(rows) == ROWS
                np.save(out / f"{span.video.name}.npy", rows.numpy())


IMPORTED = ("--backbone.mode=imported", "--backbone.imported=ours", "--backbone.weights=null")


@pytest.mark.slow
def test_a_head_on_imported_features_is_the_head_on_the_cache(
    study: Path, tmp_path: Path, accelerator: Accelerator
) -> None:
    exported(study, tmp_path / "npy", accelerator)
    annotations = ["--annotations", study / "annotations.json"]
    arguments = ["--name", "ours", "--features", tmp_path / "npy", "--cache", tmp_path / "store"]
    command = ["extract/features.py", *arguments, "--stride", STRIDE, "--dtype", "float32"]
    width = experiment(study).backbone.trunk.width
    told = good(*command, *annotations, "--layout", "tc")
    assert f"6 of 6 videos have features 'ours' of {width} channels" in told
    good(*command, *annotations, "--layout", "tc")  # what is there is kept
    config = experiment(
        study,
        *IMPORTED,
        f"--backbone.imported_width={width}",
        f"--out={tmp_path / 'head'}",
        f"--cache.url={tmp_path / 'store'}",
        f"--data.videos={tmp_path / 'gone'}",
    )
    (tmp_path / "imported.yaml").write_text(dump(config))
    told = good("train/heads.py", "--config", tmp_path / "imported.yaml")
    assert "there are no pixels" in told
    good("evaluate/run.py", "--checkpoint", tmp_path / "head/last.pt")
    frozen, head = (
        folder / "evaluation/last-test" for folder in (study / "frozen", tmp_path / "head")
    )
    ours, theirs = ((f / "predictions.json").read_bytes() for f in (frozen, head))
    assert ours == theirs and len(ours) > 10_000
    ours, theirs = ((f / "metrics.json").read_bytes() for f in (frozen, head))
    assert ours == theirs

    # The script says what does not fit.
    done = script(
        "train/heads.py",
        "--config",
        tmp_path / "imported.yaml",
        "--out",
        tmp_path / "n",
        "--sampling.snippet_stride=8",
    )
    assert done.returncode == 1 and f"it has ours with {width} channels" in done.stderr
    done = script("train/e2e.py", "--config", tmp_path / "imported.yaml")
    assert done.returncode == 1 and "train on them with train/heads.py" in done.stderr
    done = script("extract/run.py", "--config", tmp_path / "imported.yaml")
    assert done.returncode == 1 and "train on them with train/heads.py" in done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_features_of_another_width_are_mapped_and_warm_an_end_to_end_start(
    study: Path, tmp_path: Path
) -> None:
    """Two folders side by side; rows that stand for later frames; a projection that learns."""
    rng = np.random.default_rng(0)
    names = json.loads((study / "annotations.json").read_text())["database"]
    for number, (folder, width) in enumerate((("rgb", 5), ("flow", 7))):
        (tmp_path / folder).mkdir()
        for index, name in enumerate(names):
            rows = rng.normal(size=(ROWS - 4 - number - index, width))
            np.save(tmp_path / folder / f"{name}.npy", rows.T)  # [C, T]
    folders = [tmp_path / "rgb", tmp_path / "flow"]
    told = good(
        *("extract/features.py", "--name", "i3d", "--features", *folders, "--fps", FPS),
        *("--cache", tmp_path / "store", "--stride", STRIDE, "--offset", 8),
    )
    assert "6 of 6 videos have features 'i3d' of 12 channels" in told
    config = experiment(
        study,
        *("--backbone.mode=imported", "--backbone.imported=i3d", "--backbone.imported_width=12"),
        *(f"--out={tmp_path / 'head'}", f"--cache.url={tmp_path / 'store'}"),
        *("--cache.dtype=float16", "--head.attention_window=19", "--backbone.weights=null"),
    )
    with Store.open(tmp_path / "store") as store:
        annotations = load_annotations(config.data)
        items = load_items(config.data, annotations, "test", None, store, "i3d")
        for item in items:  # row i stands for frame 8 + 4 i
            seconds = np.array([8.0, 12.0, 8 + 4 * 10]) / FPS
            assert np.allclose(item.to_timeline(seconds), [0, 4, 40])
            assert np.allclose(item.to_seconds(item.to_timeline(seconds)), seconds)
    (tmp_path / "imported.yaml").write_text(dump(config))
    good("train/heads.py", "--config", tmp_path / "imported.yaml")
    saved = load_checkpoint(tmp_path / "head/last.pt", Experiment)
    start = build_detector(saved.config, saved.classes)
    (stream,) = Detector.restore(saved, "last.pt").streams
    assert isinstance(stream.backbone, Imported)
    before = start.streams[0].backbone.state_dict()
    assert set(before) == {"project.weight", "project.bias"}
    for name, tensor in stream.backbone.state_dict().items():
        assert not torch.equal(tensor, before[name]), name

    # An end-to-end run begins with that head, and with the pretrained backbone.
    plain = replace(experiment(study, "--backbone.mode=adapter"), head=saved.config.head)
    detector = build_detector(plain, saved.classes)
    trunk = detector.streams[0].backbone.state_dict()
    init_from_checkpoint(detector, tmp_path / "head/last.pt")
    assert type(detector.streams[0].backbone) is Backbone
    for name, tensor in detector.streams[0].head.state_dict().items():
        assert torch.equal(tensor, stream.head.state_dict()[name]), name
    for name, tensor in detector.streams[0].backbone.state_dict().items():
        assert torch.equal(tensor, trunk[name]), name
    with pytest.raises(ValueError, match="cannot be computed from pixels"):
        stream.backbone(torch.zeros(1, 3, 16, 32, 32))


def importing(folder: Path, *more: object) -> str:
    done = script(
        *("extract/features.py", "--name", "x", "--features", folder, "--cache", folder / "store"),
        *more,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.slow
def test_imports_that_cannot_be_are_told_and_the_others_are_in(tmp_path: Path) -> None:
    stride = ["--stride", 4]
    assert "has no file" in importing(tmp_path, *stride)
    np.save(tmp_path / "a.npy", np.zeros((9, 3)))
    assert "frame rate of 1 videos is not known (a)" in importing(tmp_path, *stride)
    assert "must be even" in importing(tmp_path, "--stride", 3, "--fps", 30)
    assert "give --layout" in importing(tmp_path, *stride, "--fps", 30)
    np.save(tmp_path / "aa.npy", np.full((7, 3), np.inf))
    np.save(tmp_path / "b.npy", np.zeros((7, 3)))
    np.save(tmp_path / "d.npy", np.zeros((7, 4)))
    said = importing(tmp_path, *stride, "--fps", 30)
    assert "2 of 4 videos have none" in said and "d.npy: 4 channels, where others have 3" in said
    assert "aa.npy: 21 of 21 numbers are not finite" in said
    with Store.open(tmp_path / "store") as store:
        assert set(store.videos_by_name) == {"x/a", "x/b"}
        assert sum(summary.spans for summary in store.summaries()) == 2
    written(tmp_path / "a.npz", np.zeros((9, 3)))
    assert "two files of one name" in importing(tmp_path, *stride, "--fps", 30)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--backbone.imported=null", "goes with backbone.imported"),
        ("--backbone.mode=frozen", "goes with backbone.imported"),
        ("--sampling.scale_factor=1", "needs sampling.scale_factor 2"),
        ("--cache.span=window", "needs cache.span video"),
        ("--direction=reversed", "needs direction forward"),
        ("--fusion.method=average", "needs fusion.method none"),
    ],
)
def test_settings_that_do_not_go_with_imported_features(
    tmp_path: Path, override: str, said: str
) -> None:
    fitting = [*IMPORTED, "--backbone.imported_width=8"]
    assert experiment(tmp_path, *fitting).backbone.cuts == ("features",)
    with pytest.raises(ValueError, match=said):
        experiment(tmp_path, *fitting, override)


# ------------------------------------------------------------------ a look at the whole folder

RATE = 30.0
WIDTH = 24


def annotated(folder: Path, durations: dict[str, float]) -> Path:
    database = {
        name: {
            "subset": "training",
            "duration": duration,
            "frame": round(duration * RATE),
            "annotations": [{"segment": [0.5, 1.5], "label": "run"}],
        }
        for name, duration in durations.items()
    }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return folder / "annotations.json"


def rows_of(duration: float, stride: int, clip: int = 16) -> NDArray[np.float32]:
    """What a network of clips gives: a row every `stride` frames, none for the last clip's rest."""
    rows = int(duration * RATE - clip) // stride + 1
    return np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)


DURATIONS = {"a": 61.0, "b": 33.2, "c": 127.9, "d": 20.0, "e": 45.5}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    annotated(tmp_path, DURATIONS)
    for name, duration in DURATIONS.items():
        np.save(folder / f"{name}.npy", rows_of(duration, 8))
    return folder


def imports(folder: Path, *more: object, stride: int = 8) -> tuple[int, str, str]:
    """Import in this process; return the exit code and what was printed."""
    done = script(
        *("extract/features.py", "--name", "x", "--features", folder, "--stride", stride),
        *("--annotations", folder.parent / "annotations.json", "--cache", folder.parent / "store"),
        *more,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("clip", [16, 64])
def test_rows_that_end_a_clip_before_the_video_fit(features: Path, clip: int) -> None:
    for name, duration in DURATIONS.items():
        np.save(features / f"{name}.npy", rows_of(duration, 8, clip))
    code, out, err = imports(features)
    assert code == 0 and "5 of 5 videos" in out, err


def test_files_whose_features_are_there_are_read_once(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()

    def counted(path: Path, key: str | None = None) -> NDArray[np.floating]:
        read.append(path.name)
        return read_array(path, key)

    for module in ("extract.feature_files", "extract.feature_folder"):
        monkeypatch.setattr(f"{module}.read_array", counted)
    request = ImportRequest(
        name="x",
        features=[features],
        cache=str(features.parent / "store"),
        stride=8,
        offset=0.0,
        annotations=features.parent / "annotations.json",
        info_csv=[],
        fps=None,
        layout=None,
        key=None,
        dtype="float16",
    )
    import_features(request)
    assert len(read) == 2 * len(DURATIONS)  # judged, then stored
    read.clear()
    import_features(request)
    assert sorted(read) == sorted(f"{name}.npy" for name in DURATIONS)


@pytest.mark.parametrize(("given", "likely"), [(4, 8), (16, 8), (2, 8), (64, 8)])
def test_a_wrong_stride_is_told_with_the_right_one(features: Path, given: int, likely: int) -> None:
    code, _, err = imports(features, stride=given)
    assert code == 1
    assert f"5 of 5 files do not last as long as their videos at --stride {given}" in err
    assert f"--stride {likely} would fit all of them" in err
    for name, duration in DURATIONS.items():
        seconds = len(rows_of(duration, 8)) * given / RATE
        how = "short" if given < likely else "long"
        assert re.search(
            rf"{name}\.npy: .*last {seconds:.1f} s, the video {duration:.1f} s: "
            rf"{abs(seconds - duration):.1f} s too {how}",
            err,
        )
    assert not (features.parent / "store").exists()  # nothing was imported


def test_the_one_file_that_is_cut_is_told_and_the_others_are_in(features: Path) -> None:
    np.save(features / "c.npy", rows_of(DURATIONS["c"], 8)[:300])
    code, out, err = imports(features)
    assert code == 1 and "4 of 5 videos have features" in out
    assert "1 of 5 videos have none" in err and re.search(
        r"c\.npy: 300 rows .* 47\.9 s too short", err
    )


def test_a_wrong_frame_rate_is_told_as_such(features: Path) -> None:
    code, _, err = imports(features, "--fps", 15)
    assert code == 1 and "at the annotated frame rates they would; leave --fps out" in err


def test_features_resized_to_one_length_are_told(features: Path) -> None:
    for name in DURATIONS:
        np.save(features / f"{name}.npy", np.random.default_rng(0).normal(size=(100, WIDTH)))
    code, _, err = imports(features, "--layout", "tc")
    assert code == 1 and "all have 100 rows, as if resized to one length" in err


@pytest.mark.parametrize("odd", ["a", "e"])
@pytest.mark.parametrize("layout", [(), ("--layout", "tc")])
def test_the_odd_file_of_a_mixed_folder_is_named(
    features: Path, odd: str, layout: tuple[str, ...]
) -> None:
    """Even if it is the first one; the others are imported."""
    np.save(features / f"{odd}.npy", rows_of(DURATIONS[odd], 8).T)
    code, out, err = imports(features, *layout)
    assert code == 1 and "4 of 5 videos have features 'x' of 24 channels" in out
    assert re.search(rf"{odd}\.npy is 24 x \d+, \[C, T\], where 4 others are \[T, C\]: transp", err)
    assert err.count(".npy") == 1


def test_a_layout_that_is_exchanged_is_told(features: Path) -> None:
    code, _, err = imports(features, "--layout", "ct")
    assert code == 1 and "is it --layout tc?" in err


def shapes_as_files(tmp_path: Path, shapes: list[tuple[int, int]]) -> list[FeatureSource]:
    for number, shape in enumerate(shapes):
        np.save(tmp_path / f"v{number}.npy", np.ones(shape, np.float32))
    paths = [tmp_path / f"v{number}.npy" for number in range(len(shapes))]
    return [FeatureSource(path.stem, (path,), RATE, None, None) for path in paths]


@pytest.mark.parametrize(
    ("shapes", "layout", "odd"),
    [
        ([(9, 3), (7, 3)], "tc", set()),
        ([(3, 9), (3, 7)], "ct", set()),
        ([(9, 3), (7, 3), (7, 4)], "tc", {"v2"}),
        ([(3, 60), (90, 3), (70, 3)], "tc", {"v0"}),
        ([(60, 3), (3, 90), (3, 70), (3, 90)], "ct", {"v0"}),
        ([(3, 3), (3, 90), (3, 70)], "ct", set()),
        ([(90, 3), (90, 3), (3, 90), (70, 3)], "tc", {"v2"}),
        ([(90, 3)] * 4 + [(80, 3)] * 4 + [(3, 85)] * 3, "tc", {"v8", "v9", "v10"}),
        ([(90, 3), (3, 70)], None, set()),
        ([(90, 3), (90, 3)], None, set()),
        ([(90, 3)], None, set()),
    ],
)
def test_which_axis_is_time(
    tmp_path: Path, shapes: list[tuple[int, int]], layout: str | None, odd: set[str]
) -> None:
    seen = survey_features(shapes_as_files(tmp_path, shapes), None, None, 4, "float16")
    assert seen.layout == layout and set(seen.problems) == odd
    assert bool(seen.general) == (layout is None)
    if layout:
        assert seen.width == 3 and len(seen.usable) == len(shapes) - len(odd)


def test_a_file_of_another_width_is_the_odd_one_even_if_first(features: Path) -> None:
    np.save(features / "a.npy", np.zeros((len(rows_of(DURATIONS["a"], 8)), 7)))
    code, out, err = imports(features)
    assert code == 1 and "4 of 5 videos" in out
    assert "a.npy: 7 channels, where others have 24" in err and err.count(".npy") == 1


@pytest.mark.parametrize("transposed", [True, False])
def test_one_file_shows_its_layout_by_its_video(features: Path, transposed: bool) -> None:
    for name in "bcde":
        (features / f"{name}.npy").unlink()
    rows = rows_of(DURATIONS["a"], 8)
    np.save(features / "a.npy", rows.T if transposed else rows)
    code, out, err = imports(features)
    assert code == 0 and "features 'x' of 24 channels" in out, err


CAUSES: dict[str, tuple[Any, str, str]] = {
    "NaN": (np.full((5, 3), np.nan), ".npy", "15 of 15 numbers are not finite"),
    "objects": (np.array([[{}, 1], [2, 3]], object), ".npy", "dtype object"),
    "objects in .npz": (np.array([[{}, 1], [2, 3]], object), ".npz", "dtype object"),
    "ragged": ([[1.0, 2.0], [3.0]], ".pkl", "expected numbers"),
    "no rows": (np.zeros((0, 24)), ".npy", "is empty: its array is 0 x 24"),
    "one axis": (np.zeros(24), ".npy", "expected numbers"),
    "text": (np.array([["a", "b"]]), ".npy", "expected numbers"),
    "complex": (np.ones((4, 4), complex), ".npy", "expected numbers"),
    "sparse": (torch.ones(4, 4).to_sparse(), ".pt", "expected numbers"),
    "several": ({"rgb": np.zeros((9, 3)), "flow": np.zeros((9, 4))}, ".npz", "--key"),
    "too large": (np.full((600, 24), 70_000.0), ".npy", "--dtype float32 or bfloat16"),
    "far too large": (np.full((600, 24), 1e39), ".npy", "scale the features"),
}


def store_as(content: Any, path: Path) -> None:
    match path.suffix:
        case ".npy":
            np.save(path, content, allow_pickle=True)
        case ".npz":
            named = content if isinstance(content, dict) else {"x": content}
            np.savez(path, **named)
        case ".pt":
            torch.save(content, path)
        case _:
            path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("case", CAUSES)
def test_the_cause_is_the_files_own_however_few_there_are(tmp_path: Path, case: str) -> None:
    content, suffix, said = CAUSES[case]
    (tmp_path / "few").mkdir()
    store_as(content, tmp_path / f"few/a{suffix}")
    annotated(tmp_path, {"a": 160.0})
    code, _, err = imports(tmp_path / "few")
    assert code == 1 and said in err and f"a{suffix}" in err
    assert "--layout" not in err


def test_all_problems_of_a_folder_are_told_in_one_go(tmp_path: Path) -> None:
    annotated(tmp_path, dict.fromkeys([f"v{n:02}" for n in range(20)] + ["good", "fine"], 160.0))
    folder = tmp_path / "features"
    folder.mkdir()
    for number, (content, suffix, _) in enumerate(CAUSES.values()):
        store_as(content, folder / f"v{number:02}{suffix}")
    (folder / "v15.npy").touch()
    good = rows_of(160, 8)
    for name, array in {"v16": good.T, "v17": good[:100], "good": good, "fine": good}.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "v18.npy", good)
    np.savez(folder / "v18.npz", x=good)
    code, out, err = imports(folder)
    assert code == 1 and "2 of 18 videos have features" in out
    for _, suffix, said in CAUSES.values():
        assert said in err and suffix in err
    for said in ("v15.npy", "v16.npy is 24 x", "v17.npy: 100 rows", "two files of one name"):
        assert said in err


def test_numbers_that_fit_another_dtype_are_imported_with_it(features: Path) -> None:
    np.save(features / "a.npy", rows_of(DURATIONS["a"], 8) + 1e5)
    code, _, err = imports(features)
    assert code == 1 and re.search(
        r"a\.npy: its largest number, 1000\d\d.*float16 \(--dtype\)", err
    )
    code, out, err = imports(features, "--dtype", "float32")
    assert code == 0 and "5 of 5" in out, err


def test_an_array_of_several_is_chosen_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rows = np.arange(12.0).reshape(4, 3)
    np.savez(path, rgb=rows, flow=rows + 1, names=np.array([{}], object), fps=30)
    assert np.array_equal(read_array(path, "flow"), rows + 1)
    with pytest.raises(ValueError, match=r"rgb \(4, 3\), flow \(4, 3\), but no 'i3d'.*--key"):
        read_array(path, "i3d")
