"""Detection in one's own videos: from Python, from the command line, and the files it leaves."""

import csv
import json
import multiprocessing
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks import long_video
from configs import cli
from configs.loader import load
from evaluate import detect
from evaluate.annotations import Detection, read_annotations
from evaluate.files.clip_names import clip_names
from evaluate.files.predictions import read_predictions
from evaluate.files.subtitles import (
    format_clock,
    format_csv,
    format_listing,
    format_srt,
    format_vtt,
)
from extract.backbone.backbone import Backbone
from extract.backbone.videomae import Linear
from extract.settings.backbone import Precision
from extract.settings.sampling import Direction
from extract.transcoding.cut import find_frames
from extract.video.reader import VideoError, VideoReader
from tests.conftest import REPOSITORY
from tests.encodings import ENCODINGS, read_numbers, write_numbered
from tests.forks import script
from tests.marks import slow
from tests.test_detector import select_candidates, small_experiment
from train.config import Experiment
from train.data.batch import Batch
from train.data.items import VideoItem
from train.data.video_files import probe_item
from train.detector.model import Detector
from train.engine.checkpoint import Checkpoint, save_checkpoint
from train.modeling.actionformer import HeadOutput
from train.modeling.config import FusionConfig
from train.postprocessing import curves
from train.postprocessing.candidates import Candidates, Predictions, merge_windows
from train.postprocessing.curves import MOST_BINS, ScoreCurves, step_scores

CLASSES = ("wave", "</script>jump", "fall --> over")


def detector_of(config: Experiment) -> Detector:
    """A detector whose scores differ and whose segments have some length, as if trained."""
    torch.manual_seed(0)
    detector = Detector(config, CLASSES)
    for stream in detector.streams:
        torch.nn.init.normal_(stream.head.class_out.weight, std=0.3)
        torch.nn.init.ones_(stream.head.distance_out.bias)  # type: ignore[arg-type]
    return detector.eval()


def save(detector: Detector, path: Path) -> Path:
    state = detector.state_dict()
    save_checkpoint(path, Checkpoint(detector.config, CLASSES, state, state, {}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each kind, two videos of other encodings, and one that is broken."""
    folder = tmp_path_factory.mktemp("detect")
    config = small_experiment(folder)
    for direction in ("forward", "reversed"):
        save(detector_of(replace(config, direction=direction)), folder / f"{direction}.pt")
    fusion = replace(config, fusion=FusionConfig(method="average"))
    save(detector_of(fusion), folder / "fused.pt")
    videos = folder / "videos"
    videos.mkdir()
    write_numbered(videos / "one.mp4", 150)
    write_numbered(videos / "two.avi", 70, ENCODINGS["MPEG-4 in AVI"])
    (videos / "bad.mp4").write_bytes((videos / "one.mp4").read_bytes()[:700])
    return folder


def run(folder: Path, videos: object, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script on a video of the folder, with a checkpoint of it."""
    return script("evaluate/detect.py", folder / str(videos), "--cpu", *arguments)


def window_by_window(detector: Detector, path: Path) -> list[Detection]:
    """Each window read at random access, predicted alone; joined and suppressed in the end."""
    reader, item, config = VideoReader(path), probe_item(path), detector.config
    size, starts = config.sampling.window_size, list[int]()
    stride = config.sampling.snippet_stride
    steps = -(-item.frames // stride)
    while not starts or starts[-1] + size < steps:
        starts.append(min(len(starts) * size // 2, max(0, steps - size)))
    found = []
    for start in starts:
        indices = np.arange(start, min(start + size, steps)) * stride
        pixels = torch.from_numpy(reader.frames(indices)).permute(3, 0, 1, 2)
        shape = (len(indices), config.pixels.size, config.pixels.size)
        assert pixels.shape[1:] == shape, "the test's videos need no resizing"
        padded = torch.cat([pixels, pixels[:, -1:].expand(-1, size - len(indices), -1, -1)], 1)
        mask = torch.arange(size)[None] < len(indices)
        with torch.inference_mode():
            (output,) = detector([padded[None]], mask, torch.zeros(1))
        (best,) = select_candidates(output, config.evaluation)
        found.append(Candidates(best.segments * stride + start * stride, *best[1:]))
    return merge_windows(found, item, CLASSES, config.evaluation)


@pytest.mark.parametrize("frames", [slow(40), slow(64), 333])
def test_streamed_windows_are_the_windows_alone(tmp_path: Path, frames: int) -> None:
    """One decode, windows in passing: segments to the last bit those of each window by itself."""
    path = tmp_path / "video.mp4"
    write_numbered(path, frames, replace(ENCODINGS["H.264"], size=(64, 64)))
    config = small_experiment(tmp_path)
    one = replace(config.evaluation, batch_size=1)  # other batches round otherwise
    detector = detector_of(replace(config, evaluation=one))
    told: list[int] = []
    examined = detector.detect_with_scores(probe_item(path), done=told.append)
    assert sum(told) == len(detector.windows(probe_item(path)))
    assert examined.detections == {"forward": window_by_window(detector, path)}
    assert examined.detections["forward"]
    assert detector.detect(path) == examined.detections["forward"]


def test_three_lines_of_python(folder: Path) -> None:
    detector = Detector.from_checkpoint(folder / "fused.pt")
    found = [(s.start_s, s.end_s, s.label) for s in detector.detect(folder / "videos/one.mp4")]
    assert found and all(0 <= start < end <= 6 for start, end, _ in found)


@pytest.mark.parametrize(
    ("precision", "expected"),
    # As where a checkpoint is evaluated, fp16 is float32 on a CPU.
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)],
)
def test_python_computes_in_the_precision_of_the_training(
    folder: Path, precision: Precision, expected: torch.dtype
) -> None:
    config = small_experiment(folder)
    training = replace(config.training, precision=precision)
    detector, seen = detector_of(replace(config, training=training)), set[torch.dtype]()

    def note(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    (stream,) = detector.streams
    assert isinstance(stream.backbone, Backbone)
    for block in stream.backbone.trunk.blocks:
        block.mlp.fc1.register_forward_hook(note)  # type: ignore[union-attr]
    path = folder / "videos/one.mp4"
    frames = VideoReader(path).frames(np.arange(80))
    for find in (
        lambda: detector.detect(path),
        lambda: detector.detect(frames, fps=25),
        lambda: next(detector.detect_live(iter(frames), fps=25)),
        lambda: detector.detect_with_scores(probe_item(path)),
    ):
        find()
        assert seen == {expected} and not torch.is_autocast_enabled("cpu")
        seen.clear()


def test_windows_go_to_where_the_network_computes(folder: Path) -> None:
    """Of what is held, the weights themselves lie elsewhere: on the host, and here nowhere."""
    detector = Detector.from_checkpoint(folder / "forward.pt")
    path = folder / "videos/one.mp4"
    expected = detector.detect(path)
    for part in [part for part in detector.modules() if isinstance(part, Linear)]:
        if not part.weight.requires_grad:
            part.hold(torch.float32)
            for name, weight in [*part.named_parameters()]:
                setattr(part, name, torch.nn.Parameter(weight.to("meta"), requires_grad=False))
    assert next(detector.parameters()).is_meta
    assert detector.detect(path) == expected


def test_the_script_computes_with_what_is_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen matrices are rounded once, and not at every use."""
    held = list[torch.dtype | None]()

    def look(self: Detector, item: VideoItem, *more: Any) -> Any:
        linears = (part for part in self.modules() if isinstance(part, Linear))
        held.extend(part.working and part.working[0].dtype for part in linears)
        raise VideoError(f"{item.path}: seen enough")

    monkeypatch.setattr(Detector, "detect_with_scores", look)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        video, checkpoint = folder / "videos/one.mp4", folder / "forward.pt"
        of = "--checkpoint", checkpoint, "--training.precision", "bf16"
        assert "seen enough" in in_process(monkeypatch, video, *of)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert set(held) == {torch.bfloat16}


def test_step_scores_are_the_best_of_all_levels() -> None:
    fine = torch.tensor([[[-4.0, -4, 2, -4, -4, -4, -4, -4]]])
    coarse = torch.tensor([[[-4.0, 1, -4, 3]]])
    masks = torch.arange(8)[None] < 7, torch.tensor([[True, True, True, False]])
    output = HeadOutput((fine, coarse), (torch.zeros(1, 2, 8), torch.zeros(1, 2, 4)), masks)
    low, one, two = (1 / (1 + np.exp(-x)) for x in (-4.0, 1.0, 2.0))
    # The point of the second level at step 2 is the nearest of step 1, 2; at half way the later.
    expected = [low, one, two, low, low, low, low, 0]
    assert step_scores(output)[0, 0].numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reversed"])
def test_curves_stand_where_the_scores_are(tmp_path: Path, direction: Direction) -> None:
    """What is said of one frame, in whatever direction, is found at its time."""
    path = tmp_path / "video.mp4"
    write_numbered(path, 200)
    config = replace(small_experiment(tmp_path), direction=direction)
    detector = detector_of(config)
    item = probe_item(path)
    mark = 120  # frame

    def run(batch, of_streams=False):  # type: ignore[no-untyped-def]
        logits = torch.full((len(batch.windows), 3, batch.mask.shape[1]), -20.0)
        for row, window in enumerate(batch.windows):
            hits = np.flatnonzero(window.indices(direction) == mark)
            logits[row, 1, hits] = 2.0
        levels = [logits] + [torch.full_like(logits[..., :: 2**n], -20.0) for n in (1, 2)]
        masks = tuple(batch.mask[:, :: 2**n] for n in range(3))
        distances = tuple(torch.ones_like(level[:, :2]) for level in levels)
        return {direction: ((HeadOutput(tuple(levels), distances, masks), direction),)}

    detector.predict_batch = run  # type: ignore[method-assign]
    found = detector.detect_with_scores(item).curves
    assert found.scores.shape == (3, 100) and len(found.times_s) == 101
    assert found.times_s[[0, -1]] == pytest.approx([0, 8])
    (marked,) = np.nonzero(found.scores[1] > 0.5)
    begins, ends = found.times_s[marked[0]], found.times_s[marked[-1] + 1]
    assert begins <= mark / 25 <= ends and ends - begins <= 2 * 2 / 25 + 1e-9
    assert found.scores[1].max() == pytest.approx(1 / (1 + np.exp(-2)))
    assert found.scores[[0, 2]].max() < 1e-6


def test_curves_wait_for_a_batch_while_the_next_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused result has two outputs; both come in one copy."""
    path = tmp_path / "video.mp4"
    write_numbered(path, 500)
    config = replace(small_experiment(tmp_path), fusion=FusionConfig("average"))
    config = replace(config, evaluation=replace(config.evaluation, batch_size=1))
    detector, seen = detector_of(config), list[str]()
    predict_batch = detector.predict_batch

    def predict(batch: Batch, of_streams: bool) -> Predictions:
        seen.append("compute")
        return predict_batch(batch, of_streams)

    def start_fetch(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        seen.append("fetch")

        def wait() -> torch.Tensor:
            seen.append("wait")
            return tensor

        return wait

    monkeypatch.setattr(detector, "predict_batch", predict)
    monkeypatch.setattr(curves, "start_fetch", start_fetch)
    detector.detect_with_scores(probe_item(path))
    batches = seen.count("compute")
    assert batches > 2
    assert seen == ["compute", "fetch", *["compute", "fetch", "wait"] * (batches - 1), "wait"]


def test_memory_of_curves_does_not_grow() -> None:
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64), ()
    for frames, bins in ((30, 15), (31, 15), (10**7, MOST_BINS)):
        item = VideoItem("long", Path("long.mp4"), frames, frames / 25, 25, *nothing)
        assert ScoreCurves.empty(item, 2.0, 3).scores.shape == (3, bins)


FOUND = [
    Detection("b", 3661.5, 3662.0, 0.25),
    Detection("a & <b>", 0.0, 0.0004, 0.5),
    Detection("x --> y\n\nz", 1.0, 2.5, 0.875),
]


def test_subtitles_have_their_formats() -> None:
    """SubRip: number, times with commas, text, empty line. WebVTT: points, and escaped text."""
    assert format_srt(FOUND) == (
        "1\n00:00:00,000 --> 00:00:00,001\na & <b> (0.50)\n\n"
        "2\n00:00:01,000 --> 00:00:02,500\nx → y z (0.88)\n\n"
        "3\n01:01:01,500 --> 01:01:02,000\nb (0.25)\n\n"
    )
    head, *cues = format_vtt(FOUND).rstrip("\n").split("\n\n")
    assert head == "WEBVTT" and len(cues) == 3
    stamp = r"\d\d:\d\d:\d\d\.\d{3}"
    for cue in cues:
        times, text = cue.split("\n")
        assert re.fullmatch(f"{stamp} --> {stamp}", times)
        assert "-->" not in text and "<" not in text
    assert "a &amp; &lt;b&gt; (0.50)" in cues[0]
    assert format_srt([]) == "" and format_vtt([]) == "WEBVTT\n\n"


def test_other_readers_read_the_subtitles(tmp_path: Path) -> None:
    for name, text in (("cues.srt", format_srt(FOUND)), ("cues.vtt", format_vtt(FOUND))):
        (tmp_path / name).write_text(text)
        with av.open(str(tmp_path / name)) as container:
            cues: Any = [packet for packet in container.demux(subtitles=0) if packet.size]
            times = [(float(p.pts * p.time_base), float(p.duration * p.time_base)) for p in cues]
        assert times == [(0, 0.001), (1, 1.5), (3661.5, 0.5)]


def test_csv_and_listing() -> None:
    rows = list(csv.reader(format_csv({"v,1": FOUND}).splitlines(keepends=True)))
    assert rows[0] == ["video", "label", "start_s", "end_s", "score"]
    text = format_csv({"v,1": FOUND})
    labels = [row["label"] for row in csv.DictReader(text.split("\r\n")[:2])]
    assert labels == ["a & <b>"] and text.count("\r\n") == 4
    lines = format_listing(FOUND).splitlines()
    assert len(lines) == 4 and "1:01:01.50" in lines[-1] and "x --> y z" in lines[2]
    many = format_listing([Detection("a", i, i + 1, 1 / (i + 1)) for i in range(100)])
    assert "60 more" in many and len(many.splitlines()) == 42
    assert [format_clock(t) for t in (0, 59.999, 3599.5)] == ["0:00.00", "1:00.00", "59:59.50"]
    assert format_clock(7200, 0) == "2:00:00"


def test_one_command_writes_all(folder: Path) -> None:
    """Good videos count, bad ones are told at the end, and the status says so."""
    out = folder / "out"
    annotations = {
        "database": {
            "one": {
                "subset": "test",
                "duration": 6.0,
                "frame": 150,
                "annotations": [{"segment": [1.0, 2.0], "label": "wave"}],
            }
        }
    }
    (folder / "truth.json").write_text(json.dumps(annotations))
    files = ["--json", out / "a.json", "--csv", out / "a.csv", "--page", out / "a.html"]
    subtitles = ["--srt", out / "srt", "--vtt", out / "vtt"]
    subtitles += ["--label_studio", out / "ls.json", "--via", out / "via.json"]
    subtitles += ["--elan", out / "elan"]
    truth = ["--annotations", folder / "truth.json"]
    checkpoint = ["--checkpoint", folder / "fused.pt", "--threshold", 0]
    done = run(folder, "videos", *checkpoint, *files, *subtitles, *truth)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].endswith("error: 1 of the videos could not be read:")
    assert "bad.mp4: cannot be read as video" in done.stderr.splitlines()[-1]
    assert "videos/one.mp4 (0:06.00)" in done.stdout and "× real time" in done.stdout
    found = read_predictions(out / "a.json")
    assert found.keys() == {"one", "two"}
    detector = Detector.from_checkpoint(folder / "fused.pt")
    for name, path in (("one", "one.mp4"), ("two", "two.avi")):
        assert found[name] == detector.detect(folder / "videos" / path)
        assert (out / f"srt/{name}.srt").read_text() == format_srt(found[name])
        assert (out / f"vtt/{name}.vtt").read_text() == format_vtt(found[name])
    for tool, apart in (("ls.json", 0.5 / 25 + 1e-5), ("via.json", 0), ("elan", 1e-3)):
        read_back = read_annotations(out / tool)
        for name in ("one", "two"):
            wanted = sorted(found[name], key=lambda d: (d.start_s, d.end_s))
            # Frames and milliseconds are rounded, and what then is equal is dropped.
            segments = read_back.videos[name].segments
            assert {s.label for s in segments} == {d.label for d in wanted}
            assert len(segments) == len(wanted) if apart == 0 else 0 < len(segments) <= len(wanted)
            for s in segments:
                assert any(
                    s.label == d.label
                    and abs(s.start_s - d.start_s) <= apart
                    and abs(s.end_s - d.end_s) <= 2 * apart
                    for d in wanted
                )
    with (out / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, found.values()))
    assert {row["label"] for row in rows} <= set(CLASSES)
    text = (out / "a.html").read_text()
    data = json.loads(
        re.findall(r'<script id="data" type="application/json">(.*?)</script>', text)[0]
    )
    one, two = data["videos"]
    assert [lane["name"] for lane in one["lanes"]] == [
        "ground truth",
        "forward",
        "reversed",
        "fused",
    ]
    assert [lane["name"] for lane in two["lanes"]] == ["forward", "reversed", "fused"]
    assert one["lanes"][0]["segments"] == [[data["classes"].index("wave"), 1.0, 2.0]]
    assert len(one["lanes"][-1]["segments"]) == len(found["one"])
    assert (out / one["source"]).resolve() == (folder / "videos/one.mp4").resolve()


@pytest.mark.slow
def test_segments_are_cut_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator
) -> None:
    """Each is a file; what cannot be cut is told at the end, and costs no other segment."""
    out = tmp_path / "clips"
    videos = folder / "videos/one.mp4", folder / "videos/two.avi"
    json_file = tmp_path / "a.json"
    command = ["--checkpoint", folder / "forward.pt", "--threshold", 0, "--top", 3]
    command += ["--clips", out, "--json", json_file]
    monkeypatch.setattr("sys.argv", ["detect.py", "--cpu", *map(str, [*videos, *command])])
    cli.run(detect.main)
    found = read_predictions(json_file)
    names = {video: clip_names(video, segments) for video, segments in found.items()}
    assert {path.name for path in out.iterdir()} == {n for each in names.values() for n in each}
    for video, path in zip(("one", "two"), videos, strict=True):
        reader = VideoReader(path)
        for name, segment in zip(names[video], found[video], strict=True):
            first, last = find_frames(reader.index, segment.start_s, segment.end_s)
            shown = VideoReader(out / name)
            numbers = read_numbers(shown.frames(np.arange(len(shown))))
            assert numbers == list(range(first, last + 1))
    # Again: those that are there stay; one that is something else is not replaced.
    kept, letter = out / names["two"][1], out / names["one"][0]
    changed = kept.stat().st_mtime_ns
    letter.write_text("a letter")
    told = in_process(monkeypatch, *videos, *command)
    assert "error: 1 of the segments could not be cut out:" in told and letter.name in told
    assert letter.read_text() == "a letter" and kept.stat().st_mtime_ns == changed
    assert read_predictions(json_file) == found


@pytest.mark.slow
def test_evaluation_writes_for_annotation_tools(folder: Path, tmp_path: Path) -> None:
    entry = {"segment": [1.0, 2.0], "label": "wave"}
    truth = {"one": {"subset": "test", "annotations": [entry]}}
    (tmp_path / "truth.json").write_text(json.dumps({"database": truth}))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    done = script(
        *("evaluate/run.py", "--checkpoint", folder / "forward.pt", "--subset", "test"),
        *("--annotations", tmp_path / "truth.json", f"--data.videos={folder / 'videos'}"),
        *(f"--data.classes={tmp_path / 'classes.txt'}", "--out", tmp_path / "out"),
        *("--threshold", 0, "--via", tmp_path / "via.json", "--elan", tmp_path / "elan"),
        *("--label_studio", tmp_path / "ls.json"),
    )
    assert done.returncode == 0, done.stderr
    found = read_predictions(tmp_path / "out/predictions.json")["one"]
    read_back = read_annotations(tmp_path / "via.json").videos["one"].segments
    assert sorted(read_back) == sorted((d.label, d.start_s, d.end_s) for d in found) and found
    for file in ("elan/one.eaf", "ls.json"):
        assert list(read_annotations(tmp_path / file).videos) == ["one"]
    assert (folder / "videos/one.mp4").as_uri() in (tmp_path / "elan/one.eaf").read_text()


@pytest.mark.slow
def test_thresholds_tops_and_patterns(folder: Path) -> None:
    out = folder / "some.json"
    pattern = "videos/**/[ot]*.*"  # found by us where no shell does it
    arguments = ["--checkpoint", folder / "reversed.pt", "--json", out]
    every = run(folder, pattern, *arguments, "--threshold=0")
    assert every.returncode == 0, every.stderr
    found = read_predictions(out)
    assert found.keys() == {"one", "two"}
    level = sorted(d.score for d in found["one"])[-9]
    some = run(folder, "videos/one.mp4", *arguments, "--threshold", level, "--top", 5)
    assert some.returncode == 0, some.stderr
    assert read_predictions(out) == {"one": found["one"][:5]}
    assert found["one"][4].score >= level
    some = run(folder, "videos/one.mp4", *arguments, "--threshold", level)
    assert read_predictions(out) == {"one": found["one"][:9]}
    other = run(folder, "videos/one.mp4", *arguments, "--evaluation.nms.max_segments=7")
    assert other.returncode == 0 and len(read_predictions(out)["one"]) <= 7


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["videos/none.mp4"], "there is no such file or folder"),
        (["videos/one.mp4", "--threshold=2"], "score from 0 to 1"),
        (["videos/one.mp4", "--embed"], "go with --page"),
        (["videos/one.mp4", "--no.such=1"], "no.such"),
        (["*/one.*"], "share a name"),
        (["empty"], "no video is in this folder"),
    ],
)
def test_wrong_use_is_told(folder: Path, arguments: list[str], told: str) -> None:
    (folder / "copy").mkdir(exist_ok=True)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "copy/one.avi").write_bytes((folder / "videos/two.avi").read_bytes())
    done = run(folder, *arguments, "--checkpoint", folder / "forward.pt")
    assert done.returncode and told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_detectors_of_features_say_so(tmp_path: Path) -> None:
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    config = small_experiment(tmp_path)
    backbone = replace(
        demo.backbone, mode="imported", imported="i3d", imported_width=8, weights=None
    )
    sampling = replace(config.sampling, scale_factor=2)
    detector = Detector(replace(config, backbone=backbone, sampling=sampling), CLASSES)
    write_numbered(tmp_path / "video.mp4", 30)
    with pytest.raises(ValueError, match="reads features"):
        detector.detect(tmp_path / "video.mp4")
    with pytest.raises(ValueError, match="reads features"):
        detector.detect([np.zeros((18, 24, 3), np.uint8)], fps=25.0)


@pytest.mark.slow
def test_real_clips(folder: Path, shared: Path) -> None:
    """Whatever people have: containers, codecs, sizes; the corrupted one is told."""
    done = run(folder, shared / "clips", "--checkpoint", folder / "forward.pt", "--threshold", 0)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "corrupted.mp4" in done.stderr.splitlines()[-1]
    for name in ("demo.mp4", "flipping_a_pancake.mkv", "h265_video.mp4", "part_0.mp4", "test.avi"):
        assert f"{name} (0:" in done.stdout


@pytest.mark.slow
def test_a_repeated_video_is_its_frames_again(tmp_path: Path) -> None:
    """What the benchmark of long videos measures with."""
    write_numbered(tmp_path / "once.mp4", 40)
    long_video.repeat_video(tmp_path / "once.mp4", tmp_path / "again.mp4", 4.8)
    reader = VideoReader(tmp_path / "again.mp4")
    assert read_numbers(reader.frames(np.arange(len(reader)))) == list(range(40)) * 3
    assert reader.times(np.array([0, 1, 40, 119])) == pytest.approx([0, 0.04, 1.6, 4.76])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(folder: Path, tmp_path: Path) -> None:
    """Ten times the length: a megabyte or two per thousand windows, not their frames."""
    write_numbered(tmp_path / "once.mp4", 100)
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.mp4"
        long_video.repeat_video(tmp_path / "once.mp4", path, 60 * minutes)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            run = pool.apply(long_video.measure, (folder / "forward.pt", path, None))
        assert run.duration_s == 60 * minutes
        peaks.append(run.peak_mb)
    # Of every frame its time is kept, of every window its strongest points.
    assert peaks[1] < 1.1 * peaks[0]


def in_process(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run the script here; returns how it ends."""
    monkeypatch.setattr("sys.argv", ["detect.py", "--cpu", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.run(detect.main)
    return str(end.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"),
            "two.avi: a decoding worker ended unexpectedly (lower --workers",  # it decoded nothing
        ),
        slow(RuntimeError("Too many open files. Communication"), "(ulimit -n) or lower --workers"),
        (VideoError("two.avi: broke in its middle"), "broke in its middle"),
        slow(MemoryError("no memory"), "error: no memory"),
    ],
)
def test_what_was_found_is_kept(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: Accelerator,
    error: Exception,
    told: str,
) -> None:
    """A video that breaks in its middle costs itself; what ends the run, what was not yet done."""
    examine = Detector.detect_with_scores

    def breaking(self: Detector, item: VideoItem, *more: Any) -> Any:
        if item.name == "two":
            raise error
        return examine(self, item, *more)

    monkeypatch.setattr(Detector, "detect_with_scores", breaking)
    videos = folder / "videos/one.mp4", folder / "videos/two.avi"
    files = "--json", tmp_path / "a.json", "--page", tmp_path / "a.html"
    checkpoint = "--checkpoint", folder / "forward.pt"
    assert told in in_process(monkeypatch, *videos, *checkpoint, *files, "--threshold", 0)
    assert read_predictions(tmp_path / "a.json").keys() == {"one"}
    assert (tmp_path / "a.html").exists()
