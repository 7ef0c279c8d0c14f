"""The seam: what is in the cache is used while it is true, and only then."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cache.address import VideoInfo
from cache.dtypes import Dtype
from cache.store import Store
from extract.activations import inputs
from extract.activations.activations import Activations
from extract.activations.fingerprints import fingerprints, settings
from extract.activations.inputs import PassInput, job_pieces
from extract.activations.stored import deepest
from extract.backbone.adapters import TemporalAdapter
from extract.backbone.backbone import Backbone
from extract.identity.digest import video_digest
from extract.sampling.spans import Span, whole_video_window
from extract.sampling.transforms import evaluation_transform, transform_frames
from extract.sampling.windows import sliding_windows
from extract.settings.backbone import BackboneConfig, Cut, Precision, TrunkConfig
from extract.settings.cache import CacheConfig
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from extract.video.reader import VideoError, VideoReader
from tests.encodings import ENCODINGS, write_numbered
from tests.marks import quick_only
from tests.test_backbone import relative
from tests.test_detector import golden_detector
from tests.waits import DeviceCopies
from train.detector.model import Detector
from train.engine.checkpoint import Checkpoint, save_checkpoint

DEPTH = 3
TRUNK = TrunkConfig(width=32, depth=DEPTH, heads=2, image_size=32)
PIXELS = PixelConfig(size=32, train_short_side=48)
SAMPLING = SamplingConfig(window_size=32, snippet_stride=2)
CUTS: tuple[Cut, ...] = (0, 1, 2, "features")
EXACT = CacheConfig(dtype="float32")


def new_backbone(**changes: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(TRUNK, **changes))
    for adapter in backbone.adapters.values():
        torch.nn.init.normal_(adapter.up.weight, std=0.1)  # type: ignore[union-attr,arg-type]
    return backbone.eval()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 150)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache", "a") as opened:
        yield opened


def info_of(path: Path) -> VideoInfo:
    frames = len(VideoReader(path))
    return VideoInfo(video_digest(path), path.stem, path.stat().st_size, frames, 25.0)


def spans_of(
    path: Path, direction: Direction = "forward", sampling: SamplingConfig = SAMPLING
) -> list[Span]:
    """Windows of a video; the last but one frame is odd on purpose: the last window is padded."""
    info = info_of(path)
    windows = sliding_windows(info.frames, 0.5, sampling)
    return [Span(info, path, window, direction, "window") for window in windows]


def video_span(path: Path, direction: Direction) -> Span:
    info = info_of(path)
    return Span(info, path, whole_video_window(info.frames, SAMPLING), direction, "video")


def seam(
    store: Store,
    backbone: Backbone,
    pixels: PixelConfig = PIXELS,
    precision: Precision = "fp32",
    config: CacheConfig = EXACT,
) -> Activations:
    return Activations(store, backbone, pixels, precision, config, "weights.pt")


@torch.no_grad()
def fresh(backbone: Backbone, span: Span, cut: Cut = "features") -> Tensor:
    """Compute an activation with nothing but the reader and the backbone: rows [T/2, …]."""
    frames = VideoReader(span.path).frames(span.frames)
    inputs = transform_frames(evaluation_transform(PIXELS), frames)[None]
    found: Tensor = backbone(inputs, stop=cut)[0]
    return found.mT if cut == "features" else found


def counts(activations: Activations) -> tuple[int, int, int]:
    seen = activations.counts
    return seen.hits, seen.partial, seen.full


@pytest.mark.parametrize("direction", ["forward", "reversed"])
@pytest.mark.parametrize("cut", CUTS)
def test_window_spans_are_those_of_a_full_pass_bit_for_bit(
    video: Path, store: Store, direction: Direction, cut: Cut
) -> None:
    backbone = new_backbone()
    activations = seam(store, backbone)
    for span in spans_of(video, direction):
        expected = fresh(backbone, span, cut)
        assert torch.equal(activations.get(span, cut), expected)
        assert torch.equal(activations.get(span, cut), expected)
    total = len(spans_of(video))
    assert counts(activations) == (total, 0, total)
    activations.close()
    with Store.open(store.url) as again:
        other = seam(again, new_backbone())
        for span in spans_of(video, direction):
            assert torch.equal(other.get(span, cut), fresh(backbone, span, cut))
        assert counts(other) == (total, 0, 0)


def test_a_gpu_gets_more_clips_at_a_time(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CLIPS_AT_ONCE", {"cpu": 2})
    task = PassInput(0, video_span(video, "forward"), None)  # of five clips
    few, many = ([*job_pieces([task], PIXELS, torch.device(kind))] for kind in ("cpu", "cuda"))
    assert [piece.clips(task.span) for piece in few] == [2, 2, 1] and len(many) == 1
    assert torch.equal(torch.cat([piece.inputs for piece in few], 1), many[0].inputs)


def test_stored_rows_travel_as_they_are_stored(video: Path, store: Store) -> None:
    """Workers, their memory and the copy to a device have half as many bytes as in float32."""
    span, backbone = spans_of(video)[0], new_backbone()
    activations = Activations(
        store, backbone, PIXELS, "fp32", CacheConfig(dtype="float16"), "weights.pt"
    )
    stored = activations.get(span, 2)
    activations.flush()
    task = PassInput(0, span, activations.cached_cuts()[2])
    (piece,) = job_pieces([task], PIXELS, torch.device("cpu"))
    assert piece.inputs.dtype == stored.dtype == torch.float16
    arranged = piece.arranged(span)
    assert arranged.dtype == torch.float32 and torch.equal(arranged, stored.float())


def test_the_order_of_frames_travels_while_the_device_works(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = spans_of(video, "reversed")[-1]
    (piece,) = job_pieces([PassInput(0, span, None)], PIXELS, torch.device("cpu"))
    pinned = list[Tensor]()

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    with FakeTensorMode(allow_non_fake_inputs=True), DeviceCopies() as copies:
        frames = torch.empty(piece.inputs.shape, dtype=torch.uint8, device="cuda")
        found = replace(piece, inputs=frames).arranged(span)
    assert found.shape == piece.arranged(span).shape and found.device.type == "cuda"
    assert not copies.seen and copies.free == len(pinned) == 1


@pytest.mark.parametrize("direction", ["forward", "reversed"])
def test_video_spans_are_those_of_one_long_pass(
    video: Path, store: Store, direction: Direction
) -> None:
    backbone, span = new_backbone(), video_span(video, direction)
    activations = seam(store, backbone)
    for cut in CUTS:
        assert relative(activations.get(span, cut), fresh(backbone, span, cut)) < 1e-5
    assert counts(activations)[0] == 0
    assert len(span.frames) == 80 and np.array_equal(
        video_span(video, "reversed").frames, video_span(video, "forward").frames[::-1]
    )


def test_one_decode_serves_overlapping_windows_and_both_directions(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [*spans_of(video), *spans_of(video, "reversed")]
    decoded: list[int] = []
    chunks = VideoReader.chunks

    def counted(self: VideoReader, indices: Any) -> Any:
        for chunk in chunks(self, indices):
            decoded.append(len(chunk))
            yield chunk

    monkeypatch.setattr(VideoReader, "chunks", counted)
    tasks = [PassInput(number, span, None) for number, span in enumerate(spans)]
    pieces = list(job_pieces(tasks, PIXELS, torch.device("cpu")))
    assert sum(decoded) == 75  # every second of 150 frames, once
    assert sorted(n for piece in pieces for n in piece.numbers) == list(range(len(spans)))
    for piece in pieces:
        for number in piece.numbers:
            frames = VideoReader(video).frames(spans[number].frames)
            expected = transform_frames(evaluation_transform(PIXELS), frames)
            assert torch.equal(piece.arranged(spans[number]), expected)


@pytest.mark.parametrize("k", quick_only(range(DEPTH), 1))
@pytest.mark.parametrize("name", ["down.weight", "depthwise.bias", "pointwise.weight", "gamma"])
def test_a_changed_adapter_counts_from_its_block_on(
    video: Path, store: Store, k: int, name: str
) -> None:
    backbone, span = new_backbone(), spans_of(video)[0]
    activations = seam(store, backbone)
    for cut in CUTS:
        activations.get(span, cut)
    activations.flush()
    store.refresh()
    with torch.no_grad():
        backbone.adapters[str(k)].get_parameter(name).flatten()[0] += 0.25
    for place, cut in enumerate(CUTS):
        assert activations.cached_cuts()[cut].contains(span) == (place < k)
    before = counts(activations)
    for cut in reversed(CUTS):
        assert torch.equal(activations.get(span, cut), fresh(backbone, span, cut))
    hits, partial, full = (
        now - then for now, then in zip(counts(activations), before, strict=True)
    )
    assert hits == k
    # From the deepest block that is still true; from pixels where the first one changed.
    assert (partial, full) == ((DEPTH + 1 - k, 0) if k else (0, DEPTH + 1))


def test_every_way_of_changing_weights_is_seen(video: Path, store: Store) -> None:
    backbone, span = new_backbone(), spans_of(video)[0]
    activations = seam(store, backbone)
    names = [activations.cached_cuts()["features"].fingerprint]
    adapter = backbone.adapters["2"]
    assert isinstance(adapter, TemporalAdapter)
    weight = adapter.up.weight

    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    names.append(activations.cached_cuts()["features"].fingerprint)

    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state["adapters.2.up.weight"] += 1
    backbone.load_state_dict(state)
    names.append(activations.cached_cuts()["features"].fingerprint)

    adapter.up.weight = torch.nn.Parameter(weight.detach() + 1)
    names.append(activations.cached_cuts()["features"].fingerprint)

    fused = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    for parameter in adapter.parameters():
        parameter.grad = torch.ones_like(parameter)
    fused.step()
    names.append(activations.cached_cuts()["features"].fingerprint)

    averaged = [torch.zeros_like(p) for p in adapter.parameters()]
    with torch.no_grad():
        torch._foreach_lerp_(list(adapter.parameters()), averaged, 0.5)
    names.append(activations.cached_cuts()["features"].fingerprint)

    scale = backbone.trunk.blocks[1].get_parameter("norm1.weight")
    scale.data[3] += 1
    names.append(activations.cached_cuts()["features"].fingerprint)

    scale.data.copy_(scale.data.flip(0))  # the same values at other places
    names.append(activations.cached_cuts()["features"].fingerprint)

    wide = backbone.trunk.blocks[2].get_parameter("mlp.fc1.weight")
    wide.data.copy_(wide.data.flip(1))
    names.append(activations.cached_cuts()["features"].fingerprint)
    assert len(set(names)) == len(names)
    assert torch.equal(activations.get(span), fresh(backbone, span))


def test_what_a_pass_depends_on_makes_it_miss(video: Path, store: Store, tmp_path: Path) -> None:
    span = spans_of(video)[0]
    first = seam(store, new_backbone())
    first.get(span)
    first.flush()
    store.refresh()
    assert seam(store, new_backbone()).cached_cuts()["features"].contains(span)

    others = [
        seam(store, new_backbone(), pixels=replace(PIXELS, size=48)),
        seam(store, new_backbone(), pixels=replace(PIXELS, antialias=False)),
        seam(store, new_backbone(mean=(123.0, 116.28, 103.53))),
        seam(store, new_backbone(std=(58.0, 57.12, 57.375))),
        seam(store, new_backbone(), precision="bf16"),
        seam(store, new_backbone(), config=CacheConfig(dtype="float16")),
    ]
    assert not any(other.cached_cuts()[cut].contains(span) for other in others for cut in CUTS)
    # What only training uses does not count.
    same = [
        seam(store, new_backbone(), pixels=replace(PIXELS, flip=0.1, train_short_side=50)),
        seam(store, new_backbone(recompute="full")),
        seam(store, new_backbone(trainable_from_block=2)),
    ]
    assert all(other.cached_cuts()["features"].contains(span) for other in same)

    strided = spans_of(video, sampling=replace(SAMPLING, snippet_stride=1))[0]
    shifted = spans_of(video)[1]
    backwards = spans_of(video, "reversed")[0]
    assert not any(
        first.cached_cuts()["features"].contains(s) for s in (strided, shifted, backwards)
    )

    moved = tmp_path / "elsewhere" / "other.mkv"
    moved.parent.mkdir()
    shutil.copy(video, moved)
    assert first.cached_cuts()["features"].contains(spans_of(moved)[0])
    with open(moved, "ab") as file:
        file.write(b"\0" * 16)
    assert not first.cached_cuts()["features"].contains(spans_of(moved)[0])


def test_videos_are_not_needed_for_what_is_stored(video: Path, store: Store) -> None:
    backbone, spans = new_backbone(), spans_of(video)
    activations = seam(store, backbone)
    expected = activations.get(spans[0])
    activations.close()
    os.unlink(video)
    store.refresh()
    assert torch.equal(activations.get(spans[0]), expected)
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        activations.get(spans[1])


@pytest.mark.parametrize("kind", ["window", "video"])
@pytest.mark.parametrize("direction", ["forward", "reversed"])
def test_passes_resume_from_the_deepest_block(
    video: Path, store: Store, kind: SpanKind, direction: Direction
) -> None:
    span = spans_of(video, direction)[-1] if kind == "window" else video_span(video, direction)
    backbone = new_backbone()
    activations = seam(store, backbone)
    activations.get(span, 0)
    activations.get(span, 1)
    activations.flush()
    store.refresh()
    os.unlink(video)
    places = activations.cached_cuts()
    assert deepest(places, span, "features") == 1 and deepest(places, span, 1) == 0
    found = activations.get(span)
    assert activations.counts.partial == 1
    write_numbered(video, 150)
    assert relative(found, fresh(backbone, span)) < 1e-5


@pytest.mark.parametrize("kind", ["window", "video"])
@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("block", range(DEPTH - 1))
def test_features_from_a_block_in_half_precision_carry_its_rounding(
    video: Path, store: Store, kind: SpanKind, dtype: Dtype, digits: int, block: int
) -> None:
    """Each number stands to half a unit of its last place; the network adds as much at most."""
    span = spans_of(video)[-1] if kind == "window" else video_span(video, "forward")
    backbone = new_backbone()
    activations = seam(store, backbone, config=CacheConfig(dtype=dtype))
    activations.get(span, block)
    activations.close()
    store.refresh()
    os.unlink(video)  # it cannot begin with pixels
    again = seam(store, backbone, config=CacheConfig(dtype=dtype))
    found = again.get(span).float()
    assert again.counts.partial == 1
    write_numbered(video, 150)
    off = relative(found, fresh(backbone, span))
    assert 0 < off < 2 * 2.0**-digits, off


@pytest.mark.parametrize("kind", ["window", "video"])
def test_what_a_ladder_looks_at_never_goes_stale(video: Path, store: Store, kind: SpanKind) -> None:
    span = spans_of(video)[-1] if kind == "window" else video_span(video, "reversed")
    backbone = new_backbone(mode="side", adapters_from_block=1)
    activations = seam(store, backbone)
    assert list(activations.cached_cuts()) == [0, "ladder", "features"]
    seen = activations.get(span, "ladder")
    assert seen.shape == (span.rows, 4, 2 * 32)
    assert relative(seen, fresh(backbone, span, "ladder")) < 1e-5
    activations.flush()
    store.refresh()
    activations.get(span)
    activations.flush()
    with torch.no_grad():
        backbone.get_parameter("ladder.adapters.2.up.weight").normal_()
    os.unlink(video)  # no need of it
    store.refresh()
    places = activations.cached_cuts()
    assert places["ladder"].contains(span) and not places["features"].contains(span)
    assert deepest(places, span, "features") == "ladder"
    again = activations.get(span)
    assert counts(activations) == (0, 2, 1)  # features twice from what the ladder looks at
    write_numbered(video, 150)
    assert relative(again, fresh(backbone, span)) < 1e-5
    # The same transformer by itself gives other numbers under other names.
    frozen = Backbone(BackboneConfig(TRUNK, mode="frozen")).eval()
    frozen.trunk.load_state_dict(backbone.trunk.state_dict())
    names = {place.fingerprint for place in seam(store, frozen).cached_cuts().values()}
    assert places["ladder"].fingerprint not in names and len(names) == DEPTH + 1


def test_cuts_that_a_backbone_does_not_have_are_refused(video: Path, store: Store) -> None:
    with pytest.raises(ValueError, match="no cut 9; its cuts are 0, 1, 2, features"):
        seam(store, new_backbone()).get(spans_of(video)[0], 9)


def test_damage_is_told_and_computed_anew(
    video: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, span = new_backbone(), spans_of(video)[0]
    activations = seam(store, backbone)
    expected = activations.get(span)
    activations.close()
    spoil(store)
    again = seam(Store.open(store.url, "a"), backbone)
    assert torch.equal(again.get(span), expected)
    told = capsys.readouterr()
    assert "damaged" in told.out + told.err and counts(again) == (0, 0, 1)
    again.close()
    again.store.refresh()
    assert torch.equal(again.get(span), expected) and again.counts.hits == 1


def spoil(store: Store) -> None:
    """Flip a bit in the middle of every shard."""
    for shard in (file for file in Path(store.url).rglob("c/**/*") if file.is_file()):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)


@pytest.mark.parametrize("kind", ["window", "video"])
def test_a_pass_begins_with_pixels_where_its_block_is_damaged(
    video: Path, store: Store, kind: SpanKind
) -> None:
    span = spans_of(video)[0] if kind == "window" else video_span(video, "reversed")
    backbone = new_backbone()
    activations = seam(store, backbone)
    activations.get(span, 1)
    activations.close()
    spoil(store)
    assert relative(activations.get(span), fresh(backbone, span)) < 1e-5
    assert counts(activations) == (0, 0, 2)


def test_a_video_that_was_replaced_is_not_stored_under_its_old_name(
    video: Path, store: Store, tmp_path: Path
) -> None:
    activations, span = seam(store, new_backbone()), spans_of(video)[0]
    other = tmp_path / "other.mp4"
    write_numbered(other, 150, ENCODINGS["intra only"])
    shutil.copy(other, video)
    with pytest.raises(VideoError, match="its content has changed"):
        activations.get(span)
    activations.close()
    assert not activations.cached_cuts()["features"].contains(span)


def test_what_a_script_computed_outlives_it_without_close(video: Path, store: Store) -> None:
    activations, span = seam(store, new_backbone()), spans_of(video)[0]
    activations.get(span)
    del activations
    store.refresh()
    assert seam(store, new_backbone()).cached_cuts()["features"].contains(span)


def test_all_files_with_the_weights_are_remembered(video: Path, store: Store) -> None:
    backbone, (one, two) = new_backbone(), spans_of(video)[:2]
    for origin, span in (("first.pt", one), ("second.pt", two), ("first.pt", two)):
        activations = Activations(store, backbone, PIXELS, "fp32", EXACT, origin)
        activations.get(span)
        activations.close()
    name = activations.cached_cuts()["features"].fingerprint
    assert store.fingerprints[name].checkpoint == "first.pt\nsecond.pt"


def test_half_precision_comes_back_as_it_was_stored(video: Path, store: Store) -> None:
    backbone, span = new_backbone(), spans_of(video)[0]
    exact = fresh(backbone, span)
    half: tuple[Dtype, ...] = ("float16", "bfloat16")
    for dtype in half:
        activations = seam(store, backbone, config=CacheConfig(dtype=dtype))
        expected = exact.to(getattr(torch, dtype))
        assert torch.equal(activations.get(span), expected)
        activations.close()
        store.refresh()
        assert torch.equal(activations.get(span), expected) and activations.counts.hits == 1


def test_activations_are_taken_in_eval_mode_only(video: Path, store: Store) -> None:
    activations = seam(store, new_backbone().train())
    with pytest.raises(ValueError, match="eval mode"):
        activations.get(spans_of(video)[0])


def test_equal_weights_of_different_files_are_the_same(tmp_path: Path) -> None:
    """An OpenTAD checkpoint and our own copy of it; what a pass does not use does not count."""
    theirs = golden_detector()
    config, classes = theirs.config, theirs.classes
    averaged = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    trained = {name: tensor + 1 for name, tensor in averaged.items()}
    path = tmp_path / "ours.pt"
    optimizer = {"state": torch.ones(3)}
    save_checkpoint(path, Checkpoint(config, classes, trained, averaged, optimizer))
    ours = Detector.from_checkpoint(path).streams[0].backbone
    about = settings(config.backbone, PIXELS, "fp32")
    expected = fingerprints(theirs.streams[0].backbone, about)
    assert fingerprints(ours, about) == expected

    # The trained weights, the head and the optimizer are no part of the pass.
    other = {name: tensor + 1 if ".head." in name else tensor for name, tensor in averaged.items()}
    save_checkpoint(path, Checkpoint(config, classes, averaged, other, {}))
    assert fingerprints(Detector.from_checkpoint(path).streams[0].backbone, about) == expected
    raw = Detector.from_checkpoint(path)
    raw.load_state_dict(trained)
    assert not set(fingerprints(raw.streams[0].backbone, about).values()) & set(expected.values())
