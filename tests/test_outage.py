"""What runs do while their store does not answer: compute, wait, count, and come to their end."""

import errno
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from cache.errors import Damaged, StoreError, StoreUnreachable
from cache.store import Store
from cache.upkeep.verify import verify
from extract.activations import activations as seam_module
from extract.activations import stored
from extract.sampling.spans import Span, whole_video_window
from extract.settings.sampling import Direction
from tests.encodings import write_numbered
from tests.forks import Script, good, script
from tests.object_store import Proxy
from tests.test_activations import (
    SAMPLING,
    fresh,
    info_of,
    new_backbone,
    seam,
    spans_of,
    store,
    video,
)
from tests.test_backbone import relative
from tests.test_e2e import DEMO, QUICK
from train.detector.evaluation import evaluate_checkpoint

__all__ = ["store", "video"]  # fixtures


@pytest.fixture
def url(s3: Proxy) -> str:
    return f"s3://bucket/{uuid4()}/store"


@pytest.mark.parametrize("direction", ["forward", "reversed"])
@pytest.mark.parametrize("error", [StoreUnreachable("gone"), Damaged("a", "b")])
def test_a_pass_begins_anew_from_pixels_when_its_block_breaks_off(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    direction: Direction,
    error: StoreError,
) -> None:
    path, backbone = tmp_path / "long.mp4", new_backbone()
    write_numbered(path, 300)
    info = info_of(path)
    window = whole_video_window(info.frames, replace(SAMPLING, snippet_stride=1))
    span = Span(info, path, window, direction, "video")
    activations = seam(store, backbone)
    activations.get(span, 1)
    activations.flush()
    read, calls = Store.read, list[int]()

    def breaking(self: Store, *of: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # the features, which are not there; a piece of the block; the next
            raise error
        return read(self, *of)

    monkeypatch.setattr(Store, "read", breaking)
    found = activations.get(span)
    assert len(calls) == 3
    assert relative(found, fresh(backbone, span)) < 1e-5
    monkeypatch.setattr(Store, "read", read)
    activations.flush()
    assert relative(activations.get(span), fresh(backbone, span)) < 1e-5


@pytest.mark.slow
def test_what_a_store_cannot_take_is_counted_and_memory_stays_bounded(
    s3: Proxy,
    url: str,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone, spans = new_backbone(), spans_of(video)
    with Store.open(url, "a") as store:
        activations = seam(store, backbone)
        activations.get(spans[0])
        writer = activations._writing()
        writer.flush_bytes = writer.waiting + 1
        one = writer.waiting
        activations.flush()
        with s3.outage():
            for span in spans[1:]:
                assert torch.equal(activations.get(span), fresh(backbone, span))
            activations.flush()
            assert one < writer.waiting < 3 * one
        lost = len(activations.unkept)
        assert lost == len(spans) - 1 - round(writer.waiting / one) > 0
        monkeypatch.setattr(seam_module, "AGAIN_S", 0.0)
        activations.close()
        assert len(activations.unkept) == lost
        assert verify(store) == []
    with Store.open(url) as store:
        place = seam(store, backbone).cached_cuts()["features"]
        assert sum(map(place.contains, spans)) == len(spans) - lost
    assert capsys.readouterr().out.count("the store is tried again") == 1


@pytest.mark.slow
def test_what_waits_at_the_end_counts_too(s3: Proxy, url: str, video: Path) -> None:
    backbone, spans = new_backbone(), spans_of(video)[:3]
    store = Store.open(url, "a")
    activations = seam(store, backbone)
    with s3.outage():
        for span in spans:
            activations.get(span)
        activations.close()
    assert len(activations.unkept) == 3 and "cannot be reached" in activations.unkept_cause
    store.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_mounted_disk_that_is_gone_is_a_store_that_does_not_answer(
    tmp_path: Path, store: Store, video: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """NFS, sshfs and the like: what a mount says when its server is away."""
    first, second, *_ = spans_of(video)
    activations = seam(store, new_backbone())
    expected = activations.get(first)
    activations.flush()
    gone = OSError(code, os.strerror(code))
    opening, listing, syncing = os.open, os.scandir, os.fsync
    broken = True

    def opens(path: Any, *rest: Any) -> int:
        if broken and str(path).startswith(store.url):
            raise gone
        return opening(path, *rest)

    def lists(path: Any) -> Any:
        if broken and str(path).startswith(store.url):
            raise gone
        return listing(path)

    def syncs(opened: int) -> None:
        if broken:
            raise gone
        syncing(opened)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "scandir", lists)
    monkeypatch.setattr(os, "fsync", syncs)
    place = activations.cached_cuts()["features"]
    with pytest.raises(StoreUnreachable, match=f"^{store.url} cannot be reached "):
        place.read(first)
    assert torch.equal(activations.get(first), expected)
    other = activations.get(second)
    activations.flush()  # what it could not take waits
    broken = False
    activations.close()
    assert not activations.unkept
    with Store.open(store.url) as again:
        assert torch.equal(replace(place, store=again).read(second), other)
        assert verify(again) == []


def test_readers_that_cannot_compute_wait_for_the_store(
    store: Store,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    span = spans_of(video)[0]
    activations = seam(store, new_backbone())
    expected = activations.get(span)
    activations.flush()
    place = activations.cached_cuts()["features"]
    failures = [StoreUnreachable("s3://b cannot be reached (X: y)")] * 2
    for name in ("read", "read_many"):
        read = getattr(Store, name)

        def failing(self: Store, *of: Any, read: Any = read) -> Any:
            if failures:
                raise failures.pop()
            return read(self, *of)

        monkeypatch.setattr(Store, name, failing)
    monkeypatch.setattr(stored, "PAUSE_S", 0.01)
    patient = replace(place, patience_s=60.0)
    assert torch.equal(patient.read(span), expected) and not failures
    failures += [StoreUnreachable("gone")] * 2
    (found,) = patient.read_all([span])
    assert torch.equal(found, expected) and not failures
    assert capsys.readouterr().out.count("waiting for it, 1 minutes at most") == 2
    failures += [StoreUnreachable("s3://b cannot be reached (X: y)")] * 1000
    with pytest.raises(StoreUnreachable, match=r"^s3://b.*with --resume when it answers again$"):
        replace(place, patience_s=0.1).read(span)
    with pytest.raises(StoreUnreachable, match=r"^s3://b cannot be reached \(X: y\)$"):
        place.read(span)


@pytest.mark.slow
def test_extraction_says_how_many_activations_it_could_not_keep(
    data: list[str], s3: Proxy, url: str
) -> None:
    """The real script: all is computed, nothing can be written; the next one makes it good."""
    command = ["extract/run.py", "--config", DEMO, *data, *QUICK, "--cache", url]
    command += ["--of", "validation", "--cache.flush_s=0"]
    s3.fault = lambda method, path: "500" if method == "PUT" and "/parts/" in path else None
    done = script(*command, environment=s3.environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert re.match(rf"error: \d+ activations could not be stored: cannot write into {url}", last)
    assert "the same command makes them" in last
    s3.fault = lambda method, path: None
    count = re.findall(r"error: (\d+)", last)[0]
    printed = good(*command, environment=s3.environment)
    assert f"0 of {count} spans are there" in printed
    printed = good(*command, environment=s3.environment)
    assert f"{count} of {count} spans are there" in printed


@pytest.mark.slow
def test_runs_of_all_kinds_on_an_object_store_survive_outages(
    data: list[str], s3: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, head = tmp_path / "run", tmp_path / "head"
    # End to end: no validation can leave anything.
    s3.fault = lambda method, path: "503" if method == "PUT" and "/parts/" in path else None
    e2e = ["train/e2e.py", "--config", DEMO, *data, *QUICK, "--out", run, "--cache", url]
    done = script(*e2e, environment=s3.environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ activations could not be stored", done.stdout + done.stderr)
    assert (run / "best.pt").exists()
    s3.fault = lambda method, path: None
    # Heads: the store goes in the middle, and comes again.
    heads = ["train/heads.py", "--checkpoint", run / "last.pt", "--cache", url, "--out", head]
    good("extract/run.py", *heads[1:5], environment=s3.environment)
    heads += ["--training.epochs=30", "--training.stop_epoch=30"]
    started = Script(*heads, environment=s3.environment)
    began = s3.counts["GET"]
    while s3.counts["GET"] < began + 20 and started.poll() is None:
        time.sleep(0.01)
    with s3.outage():
        time.sleep(8)
    assert started.wait() == 0, started.complained()
    assert "Traceback" not in started.complained()
    # Evaluation: what cannot be read is decoded.
    monkeypatch.setattr("train.data.cached.PATIENCE_S", 0.0)
    overrides = ["--training.workers=0"]
    expected = evaluate_checkpoint(head / "last.pt", None, overrides, cache=url)
    assert expected is not None and expected.counts is not None
    s3.fault = lambda method, path: "500" if method == "GET" and "/c/" in path else None
    found = evaluate_checkpoint(head / "last.pt", None, overrides, cache=url)
    assert found is not None and found.counts is None
    assert found.detections.keys() == expected.detections.keys()
    assert found.score().result.average == pytest.approx(expected.score().result.average, abs=0.05)
    s3.fault = lambda method, path: None
    printed = good("cache/show.py", url, "--verify", "--prune", environment=s3.environment)
    assert "all is well" in printed
