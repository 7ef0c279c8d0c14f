"""The page of timelines, looked at and worked with in a real browser."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from numpy.typing import NDArray

from evaluate.annotations import Detection, Segment
from evaluate.files.predictions import write_predictions
from evaluate.files.timeline import (
    PageVideo,
    check_embeddable,
    embed_video,
    link_video,
    render_page,
)
from evaluate.reports.mistakes_page import VideoFile, write_mistakes_page
from evaluate.reports.page import Fact, Report, Section, Table, write_report
from tests.encodings import ENCODINGS, read_numbers, write_numbered
from tests.forks import good, script
from tests.marks import slow

CLASSES = ("jump", "run", "fall", "wave", "idle")
DURATION, FPS = 6.0, 25  # of the numbered video
TRUTH = (Segment("jump", 0.5, 1.5), Segment("run", 3.0, 5.0))
FOUND = (
    Detection("run", 3.1, 4.9, 0.9),
    Detection("jump", 0.4, 1.6, 0.7),
    Detection("fall", 1.0, 2.2, 0.5),
    Detection("wave", 4.0, 5.5, 0.2),
)


def page_video(source: str, **changes: Any) -> PageVideo:
    scores = np.zeros((len(CLASSES), 60))
    scores[1, 31:49] = 0.9
    given: dict[str, Any] = {
        "name": "video.mp4",
        "source": source,
        "duration_s": DURATION,
        "fps": FPS,
        "lanes": {"ground truth": TRUTH, "forward": FOUND[:2], "fused": FOUND},
        "main": "fused",
        "curves": scores,
        "times_s": np.linspace(0, DURATION, 61),
    }
    return PageVideo(**given | changes)


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


# ---- What is written ---------------------------------------------------------------------------


def test_nothing_comes_from_outside() -> None:
    text = render_page([page_video("video.mp4")], CLASSES, "Found by x")
    assert not re.findall(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert re.findall(r'src="[^"]*"', text) == []


def test_names_cannot_break_out() -> None:
    evil = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    video = page_video(evil, name=evil, lanes={evil: [Detection(evil, 0, 1, 0.5)]}, main=evil)
    text = render_page([video], CLASSES, evil)
    assert "<img" not in text and text.count("</script>") == 2
    (read,) = data_of(text)["videos"]
    assert read["name"] == read["source"] == read["lanes"][0]["name"] == evil
    assert evil in data_of(text)["classes"]


def test_classes_that_are_seen_come_first() -> None:
    """Colours are few: those below the threshold get the later ones."""
    many = [f"class {number}" for number in range(50)]
    lane = [Detection("class 40", 0, 1, 0.8), Detection("class 3", 0, 1, 0.1)]
    truth = [Segment("unheard of", 0, 1), Segment("class 7", 2, 3)]
    curves = np.zeros((50, 60))
    curves[40, 5] = 0.8125
    video = page_video("v.mp4", lanes={"ground truth": truth, "fused": lane}, curves=curves)
    data = data_of(render_page([video], many, "x"))
    assert data["classes"][:4] == ["class 7", "class 40", "unheard of", "class 0"]
    assert sorted(data["classes"]) == sorted([*many, "unheard of"])
    scores = data["videos"][0]["curves"]["scores"]
    assert scores.keys() == {"1"} and scores["1"][5] == 812 and sum(scores["1"]) == 812


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    path = tmp_path / "a b/100% #1?.mp4"
    path.write_bytes(b"content")
    assert link_video(path, tmp_path / "pages/x.html") == "../a%20b/100%25%20%231%3F.mp4"
    odd = path.with_name(os.fsdecode(b"caf\xe9.mp4"))
    assert link_video(odd, tmp_path / "pages/x.html") == "../a%20b/caf%E9.mp4"
    head, content = embed_video(path).split(",")
    assert head == "data:video/mp4;base64" and base64.b64decode(content) == b"content"
    check_embeddable(path)
    with path.open("r+b") as file:
        file.truncate(100_000_001)  # sparse
    with pytest.raises(ValueError, match=r"100\.0 MB can be embedded"):
        check_embeddable(path)


# ---- In a browser ------------------------------------------------------------------------------


class Opened:
    """A page in a browser, and what the browser complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.tab = browser.new_page(viewport={"width": 1200, "height": 1100}, **options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda said: self.complaints.append(said.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn and shown."""
        self.tab.wait_for_function("() => !document.getElementById('video').seeking")
        self.tab.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def ask(self, code: str) -> Any:
        return self.tab.evaluate(code)

    @property
    def time(self) -> float:
        return float(self.ask("timeline.state.time"))

    @property
    def shown(self) -> tuple[float, float]:
        return float(self.ask("timeline.state.from")), float(self.ask("timeline.state.to"))

    def place(self, time: float, below: float = 10) -> tuple[float, float]:
        """Return where in the window a time stands, so far below the timeline's upper edge."""
        box = self.tab.locator("#timeline").bounding_box()
        return box["x"] + float(self.ask(f"timeline.x({time})")), box["y"] + below

    def bars(self) -> list[dict[str, Any]]:
        """Return what is drawn: lane, class, score, and its box within the timeline."""
        return list(
            self.ask(
                "timeline.bars().map(b => ({lane: b.lane.own, kind: b.segment.kind, score: "
                "b.segment.score, left: b.left, top: b.top, width: b.width, height: b.height}))"
            )
        )

    def threshold(self, level: float) -> None:
        self.tab.locator("#threshold").fill(f"{level:g}")
        self.settle()

    def picture(self, what: str = "#canvas") -> NDArray[np.float64]:
        """Return a screenshot of an element, RGB in [0, 1]."""
        self.settle()
        shot = io.BytesIO(self.tab.locator(what).screenshot())
        return np.asarray(image.imread(shot, format="png"))[..., :3].astype(np.float64)

    def frame(self) -> int:
        """Return the number that the picture of the numbered video shows."""
        shot = self.picture("#video")
        height, width = shot.shape[:2]
        wide = round(height * 128 / 64)  # letterboxed
        wide, tall = (wide, height) if wide <= width else (width, round(width / 2))
        left, top = (width - wide) // 2, (height - tall) // 2
        inner = shot[top : top + tall, left : left + wide]
        rows = np.linspace(0, tall - 1, 64).round().astype(int)
        columns = np.linspace(0, wide - 1, 128).round().astype(int)
        (number,) = read_numbers((255 * inner[rows][:, columns]).astype(np.uint8)[None])
        return number


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        # Tests may run as root, for whom Chromium's sandbox does not.
        found = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_numbered(folder / "video.mp4", int(DURATION * FPS))
    (folder / "page.html").write_text(render_page([page_video("video.mp4")], CLASSES, "Found by x"))
    return folder


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Opened]:
    """The page of six segments; whatever a test does with it, the browser must not complain."""
    opened = Opened(browser, folder / "page.html")
    yield opened
    assert opened.complaints == []
    allowed = {(folder / name).as_uri() for name in ("page.html", "video.mp4")}
    assert set(opened.requests) <= allowed | {"data:,"}
    opened.tab.close()


def test_a_click_seeks(opened: Opened) -> None:
    assert opened.tab.locator("h1").inner_text() == "Actions in video.mp4"
    for time in (3.5, 0.7, 5.8):
        opened.tab.mouse.click(*opened.place(time))
        opened.settle()
        assert opened.time == pytest.approx(time, abs=0.01)
        assert opened.ask("document.getElementById('video').currentTime") == pytest.approx(
            opened.time, abs=1e-3
        )
        assert abs(opened.frame() - time * FPS) <= 1.5
        head = opened.tab.locator("#playhead").bounding_box()
        assert head["x"] + head["width"] / 2 == pytest.approx(opened.place(time)[0], abs=2)
    opened.tab.mouse.click(*opened.place(3.5))
    told = opened.tab.locator("#here").inner_text()
    assert told.count("2 run") + told.count("1 run") == 3 and "0.90" in told


def test_the_threshold_hides(opened: Opened) -> None:
    for level in (0.0, 0.2, 0.21, 0.5, 0.7, 0.95):
        opened.threshold(level)
        scores = [bar["score"] for bar in opened.bars() if bar["lane"] == "fused"]
        assert sorted(scores) == sorted(d.score for d in FOUND if d.score >= level)
        assert sum(bar["lane"] == "ground truth" for bar in opened.bars()) == len(TRUTH)
        count = sum(d.score >= level for d in (*FOUND, *FOUND[:2]))
        assert opened.tab.locator("#count").inner_text() == f"{count} of 6 segments"
        assert opened.tab.locator("#level").inner_text() == f"{level:.2f}"


def test_hovering_tells_times(opened: Opened) -> None:
    tip = opened.tab.locator("#tip")
    (bar,) = (b for b in opened.bars() if b["lane"] == "fused" and b["score"] == 0.9)
    opened.tab.mouse.move(*opened.place(4.0, bar["top"] + bar["height"] / 2))
    text = tip.inner_text()
    assert "run" in text and "0:03.10 – 0:04.90 (1.80 s)" in text and "Fused, score 0.900" in text
    opened.tab.mouse.move(*opened.place(2.5))
    assert tip.inner_text() == "0:02.50"
    opened.tab.mouse.move(5, 5)
    assert not tip.is_visible()


def test_keys(opened: Opened) -> None:
    press = opened.tab.keyboard.press
    opened.tab.locator("#timeline").focus()
    assert opened.time == pytest.approx(0.4)  # the page begins at the first segment
    press("Home")
    for key, time in (
        ("ArrowRight", 1.0),
        ("ArrowRight", 2.0),
        ("Shift+ArrowRight", 2.0 + 1 / FPS),
        ("ArrowLeft", 1.0 + 1 / FPS),
        ("Home", 0.0),
        ("ArrowLeft", 0.0),
        ("n", 0.4),  # the starts of what the detector found: 0.4, 1.0, 3.1
        ("n", 1.0),
        ("n", 3.1),
        ("n", 3.1),
        ("p", 1.0),
        ("End", DURATION),
    ):
        press(key)
        assert opened.time == pytest.approx(time, abs=1e-6), key
    press("Home")
    for key, span in (("+", 3.0), ("+", 1.5), ("-", 3.0), ("0", 6.0), ("-", 6.0)):
        press(key)
        low, high = opened.shown
        assert high - low == pytest.approx(span), key
        assert low <= opened.time <= high
    opened.settle()
    press("Space")
    opened.tab.wait_for_function("() => timeline.state.time > 0.3")
    press("Space")
    opened.settle()
    assert opened.ask("document.getElementById('video').paused")
    assert abs(opened.frame() - opened.time * FPS) <= 2
    # Within the slider arrows are the slider's.
    before = opened.time
    opened.tab.locator("#threshold").focus()
    press("ArrowRight")
    assert opened.time == before and opened.ask("timeline.state.threshold") == 0.31


def test_zoom_stays_under_the_pointer(opened: Opened) -> None:
    opened.ask("timeline.seek(0)")
    opened.tab.mouse.move(*opened.place(4.0))
    here = opened.place(4.0)[0]
    opened.tab.mouse.wheel(0, -400)
    opened.tab.wait_for_function("() => timeline.state.to - timeline.state.from < 5.9")
    opened.settle()
    assert opened.place(4.0)[0] == pytest.approx(here, abs=1)
    low, high = opened.shown
    assert high - low == pytest.approx(DURATION * np.exp(-0.6))
    # Dragging moves what is shown, and seeks nowhere.
    opened.tab.mouse.down()
    opened.tab.mouse.move(here + 200, opened.place(4.0)[1], steps=4)
    opened.tab.mouse.up()
    opened.settle()
    assert opened.place(4.0)[0] == pytest.approx(here + 200, abs=1) and opened.time == 0
    opened.tab.get_by_role("button", name="Whole video").click()
    assert opened.shown == (0, DURATION)
    opened.tab.get_by_role("button", name="Zoom in").click()
    assert opened.shown == (0, DURATION / 2)


def test_everything_has_a_name(opened: Opened) -> None:
    slider = opened.tab.get_by_role("slider", name="Position in the video")
    opened.tab.mouse.click(*opened.place(2.0))
    assert slider.get_attribute("aria-valuetext").startswith("0:02.0")
    assert float(slider.get_attribute("aria-valuemax")) == DURATION
    for role in ("button", "slider", "combobox", "checkbox"):
        for found in opened.tab.get_by_role(role).all():
            given = found.get_attribute("aria-label") or found.inner_text()
            labelled = found.evaluate("e => e.labels ? e.labels.length : 0")
            assert given.strip() or labelled, found.evaluate("e => e.outerHTML")
    opened.tab.get_by_text("Segments as a table").click()
    rows = opened.tab.locator("#rows tr")
    rows.first.wait_for()
    assert rows.count() == 7  # those from 0.3 on, and the truth
    opened.tab.get_by_role("button", name="Go to 0:03.10").first.click()
    assert opened.time == pytest.approx(3.1)


def test_classes_can_be_hidden(opened: Opened) -> None:
    chip = opened.tab.locator("#legend button", has_text="run")
    assert chip.get_attribute("aria-pressed") == "true" and "(3)" in chip.inner_text()
    kind = int(chip.inner_text().split()[0]) - 1
    assert any(bar["kind"] == kind for bar in opened.bars())
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert not any(bar["kind"] == kind for bar in opened.bars())
    chip.press("Space")
    assert any(bar["kind"] == kind for bar in opened.bars())


# ---- Mistakes ----------------------------------------------------------------------------------

JUDGED_TRUTH = {
    "video": (*TRUTH, Segment("fall", 2.0, 2.6)),
    "second": (Segment("run", 2.0, 4.0),),
    "third": (),
}
JUDGED = {
    "video": [
        Detection("jump", 0.5, 1.5, 0.9),
        Detection("jump", 0.6, 1.5, 0.8),
        Detection("wave", 3.0, 5.0, 0.7),
        Detection("run", 3.0, 5.0, 0.4),
        Detection("run", 5.5, 5.9, 0.2),
    ],
    "third": [Detection("jump", 1.0, 2.0, 0.6)],
}
VERDICTS_OF_VIDEO = ["right", "duplicate", "unknown class", "right", "background"]


@pytest.fixture
def judged(browser: Any, folder: Path) -> Iterator[Opened]:
    """A page of three videos with their mistakes; the file of the first one is there."""
    files = {
        "second": VideoFile(None, 8.0, None),
        "video": VideoFile(folder / "video.mp4", DURATION, FPS),
        "third": VideoFile(None, None, None),
    }
    write_mistakes_page(folder / "judged.html", "Found by x", JUDGED_TRUTH, JUDGED, files)
    opened = Opened(browser, folder / "judged.html")
    yield opened
    assert opened.complaints == []
    opened.tab.close()


def test_only_mistakes_are_shown(judged: Opened) -> None:
    chooser = judged.tab.get_by_role("combobox", name="Video")
    names = chooser.locator("option").all_inner_texts()
    counts = ["second (1 of 1 missed)", "video (1 of 3 missed)", "third (0 of 0 missed)"]
    assert names == counts
    chooser.select_option("video (1 of 3 missed)")
    assert judged.time == pytest.approx(0.5)
    assert "4 of 5 segments, 1 of 3 actions missed" in judged.tab.locator("#count").inner_text()
    judged.tab.get_by_role("checkbox", name="Only mistakes").check()
    judged.settle()
    wrong = [(bar["lane"], bar["score"]) for bar in judged.bars()]
    assert sorted(wrong) == [("detections", 0.7), ("detections", 0.8), ("ground truth", 1)]
    judged.threshold(0)
    assert len(judged.bars()) == 4
    # What is found below the threshold is missed.
    judged.threshold(0.45)
    truths = [bar for bar in judged.bars() if bar["lane"] == "ground truth"]
    assert len(truths) == 2
    assert chooser.locator("option").all_inner_texts()[1] == "video (2 of 3 missed)"
    # The keys go to mistakes, the missed ones too.
    judged.tab.locator("#timeline").focus()
    judged.tab.keyboard.press("Home")
    for time in (0.6, 2.0, 3.0, 3.0):
        judged.tab.keyboard.press("n")
        assert judged.time == pytest.approx(time)
    judged.tab.get_by_role("checkbox", name="Only mistakes").focus()
    judged.tab.keyboard.press("Space")
    assert len(judged.bars()) == 3 + 3


def test_mistakes_are_named(judged: Opened) -> None:
    judged.tab.get_by_role("combobox", name="Video").select_option("video (1 of 3 missed)")
    judged.threshold(0)
    judged.tab.get_by_text("Segments as a table").click()
    rows = judged.tab.locator("#rows tr")
    rows.first.wait_for()
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    verdicts = {(row[0], row[4]): row[5] for row in cells}
    expected = zip(JUDGED["video"], VERDICTS_OF_VIDEO, strict=True)
    for detection, verdict in expected:
        assert verdicts["Detections", f"{detection.score:.2f}"] == verdict
    truths = sorted(row[5] for row in cells if row[0] == "Ground truth")
    assert truths == ["found with score 0.40", "found with score 0.90", "missed"]
    (bar,) = (b for b in judged.bars() if b["score"] == 0.8)
    judged.tab.mouse.move(*judged.place(0.9, bar["top"] + bar["height"] / 2))
    assert "score 0.800, duplicate" in judged.tab.locator("#tip").inner_text()


def test_misses_of_all_videos(judged: Opened) -> None:
    assert judged.tab.locator("h1").inner_text() == "Actions in second"
    told = judged.tab.locator("#unplayable")
    assert "its file is not known" in told.inner_text() and told.is_visible()
    judged.tab.get_by_text("Misses by video").click()
    rows = judged.tab.locator("#tallies tr")
    rows.first.wait_for()
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert cells == [
        ["video", "3", "1", "4", "2"],
        ["second", "1", "1", "0", "0"],
        ["third", "0", "0", "1", "1"],
    ]
    judged.tab.get_by_role("button", name="video", exact=True).click()
    judged.settle()
    assert judged.tab.locator("h1").inner_text() == "Actions in video"
    assert not told.is_visible() and abs(judged.frame() - 0.5 * FPS) <= 1.5


def test_a_page_of_many_videos_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"video {number}" for number in range(250)]
    truth = {name: (Segment("a", 10.0, 20.0),) for name in names}
    found = {
        name: [
            Detection("a", float(s), float(s + 3), float(p))
            for s, p in zip(rng.uniform(30, 90, 1000), rng.uniform(0.1, 1, 1000), strict=True)
        ]
        + [Detection("a", 10.0, 20.0, 0.01)]
        for name in names
    }
    files = {name: VideoFile(None, 100.0, 25.0) for name in names}
    write_mistakes_page(tmp_path / "page.html", "x", truth, found, files)
    assert (tmp_path / "page.html").stat().st_size < 6e6
    text = (tmp_path / "page.html").read_text()
    assert "its 400 best detections are here, and all that are right; 150,000 others" in text
    for video in data_of(text)["videos"]:
        lanes = {lane["name"]: lane for lane in video["lanes"]}
        rows, marks = (lanes["detections"][key] for key in ("segments", "marks"))
        best = sorted((d.score for d in found[video["name"]]), reverse=True)[:400]
        assert [row[3] for row in rows] == [round(score, 4) for score in (*best, 0.01)]
        assert marks[-1] == 0 and all(marks[:-1])
        assert len(lanes["ground truth"]["marks"]) == 1


@pytest.mark.slow
def test_predictions_files_need_no_checkpoint(folder: Path) -> None:
    database = {
        name: {
            "subset": "test",
            "duration": DURATION,
            "annotations": [{"label": s.label, "segment": [s.start_s, s.end_s]} for s in segments],
        }
        for name, segments in JUDGED_TRUTH.items()
    }
    (folder / "truth.json").write_text(json.dumps({"database": database}))
    write_predictions(folder / "found.json", JUDGED)
    page = folder / "pages/from_file.html"
    command = [
        *("evaluate/run.py", "--predictions", folder / "found.json", "--subset", "test"),
        *("--annotations", folder / "truth.json", "--tious", 0.5, "--page", page),
    ]
    told = good(*command, "--videos", folder)
    assert f"page: {page}" in told
    videos = {video["name"]: video for video in data_of(page.read_text())["videos"]}
    assert [*videos] == [*JUDGED_TRUTH]
    assert (page.parent / videos["video"]["source"]).resolve() == folder / "video.mp4"
    assert videos["second"]["source"] == "" and videos["second"]["duration"] == DURATION
    lanes = {lane["name"]: lane for lane in videos["video"]["lanes"]}
    verdicts = data_of(page.read_text())["verdicts"]
    assert [verdicts[mark] for mark in lanes["detections"]["marks"]] == VERDICTS_OF_VIDEO
    assert lanes["ground truth"]["marks"] == [0.9, 0.4, None]
    bad = script(*command[:-2], "--videos", folder)
    assert bad.returncode == 2 and "--videos goes with --page" in bad.stderr
    bad = script(*command, "--videos", folder / "absent")
    assert bad.returncode == 2 and "there is no folder" in bad.stderr


# ---- What it looks like ------------------------------------------------------------------------


def rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_stand_where_the_segments_are(browser: Any, folder: Path, scheme: str) -> None:
    """A screenshot against boxes drawn here: place, colour, and score as opacity."""
    opened = Opened(browser, folder / "page.html", color_scheme=scheme)
    opened.threshold(0)
    shot = opened.picture()
    height, width = shot.shape[:2]
    style = opened.ask(
        "(() => {const s = getComputedStyle(document.documentElement); return Object.fromEntries("
        "['ground', 'c0', 'c1', 'c2', 'c3'].map(n => [n, s.getPropertyValue('--' + n)]))})()"
    )
    ground = rgb(style["ground"])
    bright = ground.mean() > 0.5
    assert bright == (scheme == "light")
    names = data_of((folder / "page.html").read_text())["classes"]
    left, right = opened.ask("[timeline.x(0), timeline.x(6)]")
    expected = np.zeros((height, width), bool)
    lanes: dict[str, Sequence[Segment | Detection]] = {
        "ground truth": TRUTH,
        "forward": FOUND[:2],
        "fused": FOUND,
    }
    tops: list[float] = []
    for lane, segments in lanes.items():
        bars = [bar for bar in opened.bars() if bar["lane"] == lane]
        assert len(bars) == len(segments)
        assert min(bar["top"] for bar in bars) > max(tops, default=0)  # lanes below one another
        tops += [bar["top"] for bar in bars]
        for segment in segments:
            score = segment.score if isinstance(segment, Detection) else 1.0
            kind = names.index(segment.label)
            (bar,) = (b for b in bars if b["kind"] == kind and b["score"] == pytest.approx(score))
            times = segment.start_s, segment.end_s
            begins, ends = (left + time / DURATION * (right - left) for time in times)
            assert (bar["left"], bar["left"] + bar["width"]) == pytest.approx((begins, ends), abs=1)
            top, bottom = round(bar["top"]), round(bar["top"] + bar["height"])
            expected[top:bottom, round(begins) : round(ends)] = True
            # Most of the right third is neither words nor pattern.
            inside = shot[top + 2 : bottom - 2, round(ends - (ends - begins) / 3) : round(ends) - 2]
            colour = np.median(inside.reshape(-1, 3), 0)
            alpha = 0.1 + 0.9 * score
            wanted = alpha * rgb(style[f"c{kind}"]) + (1 - alpha) * ground
            assert np.abs(colour - wanted).max() < 0.12, (lane, segment)
    region = slice(30, round(max(tops)) + 30), slice(round(left), round(right))
    coloured = np.ptp(shot, axis=2)[region] > 0.06  # words, lines and ground are grey
    both = (coloured & expected[region]).sum() / (coloured | expected[region]).sum()
    assert both > 0.8
    # Nothing but bars, lines and the playhead: the rest is ground.
    empty = ~expected[region]
    assert (np.abs(shot[region] - ground).max(2)[empty] < 0.03).mean() > 0.9
    assert opened.complaints == []
    opened.tab.close()


def test_hiding_leaves_the_ground(opened: Opened) -> None:
    """Screenshots before and after differ where the hidden bar was, and lanes stay apart."""
    opened.threshold(0.3)
    (bar,) = (b for b in opened.bars() if b["score"] == 0.5)
    box = (
        slice(round(bar["top"]) + 2, round(bar["top"] + bar["height"]) - 2),
        slice(round(bar["left"]) + 2, round(bar["left"] + bar["width"]) - 2),
    )
    before = opened.picture()
    opened.threshold(0.6)
    after = opened.picture()
    assert np.ptp(before[box], axis=2).mean() > 0.1
    assert len(opened.bars()) == 6
    truth = round(min(b["top"] for b in opened.bars() if b["lane"] == "ground truth"))
    assert np.array_equal(before[truth : truth + 20], after[truth : truth + 20])


def test_classes_differ_without_colour(opened: Opened) -> None:
    """Every entry of the legend has its number, and neighbours another texture in grey."""
    opened.threshold(0)
    chips = opened.tab.locator("#legend button").all_inner_texts()
    assert [int(chip.split()[0]) for chip in chips] == list(range(1, len(chips) + 1))
    textures = []
    for number in range(len(chips)):
        shot = opened.picture(f"#legend button:nth-child({number + 1}) canvas")
        grey = (shot @ (0.299, 0.587, 0.114))[3:-3, 3:-3]
        textures.append((grey - grey.mean()).ravel()[:200])
    assert np.abs(textures[0]).max() < 0.02  # the first is plain
    for one, other in pairwise(textures):
        assert np.abs(one - other).mean() > 0.02


@pytest.mark.slow
def test_2000_segments_of_each_stream(browser: Any, folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(40)]

    def many(count: int) -> list[Detection]:
        starts, lengths = rng.uniform(0, 3500, count), rng.uniform(1, 60, count)
        labels, scores = rng.integers(0, 40, count), rng.beta(0.5, 3, count)
        return [
            Detection(names[label], float(start), float(start + length), float(score))
            for start, length, label, score in zip(starts, lengths, labels, scores, strict=True)
        ]

    lanes = {name: many(2000) for name in ("forward", "reversed", "fused")}
    curves = rng.uniform(0, 1, (40, 2000))
    times = np.linspace(0, 3600, 2001)
    video = page_video("video.mp4", duration_s=3600.0, lanes=lanes, curves=curves, times_s=times)
    (folder / "many.html").write_text(render_page([video], names, "x"))
    opened = Opened(browser, folder / "many.html")
    opened.threshold(0)
    assert len(opened.bars()) == 6000
    opened.threshold(0.4)
    kept = {name: [d for d in lane if round(d.score, 4) >= 0.4] for name, lane in lanes.items()}
    assert len(opened.bars()) == sum(map(len, kept.values()))
    best = max(kept["fused"], key=lambda d: d.score)
    opened.ask(f"timeline.seek({best.start_s + 0.01})")
    for _ in range(6):
        opened.tab.keyboard.press("+")
    opened.settle()
    low, high = opened.shown
    assert high - low == pytest.approx(3600 / 64) and low <= opened.time <= high
    inside = [d for d in kept["fused"] if d.start_s <= high and d.end_s >= low]
    bars = [bar for bar in opened.bars() if bar["lane"] == "fused"]
    assert len(bars) == len(inside)
    _no_two_overlap(bars)
    opened.tab.get_by_text("Segments as a table").click()
    opened.tab.locator("#rows tr").first.wait_for()
    assert opened.tab.locator("#rows tr").count() == min(500, sum(map(len, kept.values())))
    opened.tab.get_by_role("button", name="Hide all").click()
    assert opened.bars() == []
    assert opened.complaints == []
    opened.tab.close()


def _no_two_overlap(bars: Sequence[dict[str, Any]]) -> None:
    """Those of the last row may: there is no more room."""
    last = max(bar["top"] for bar in bars)
    for number, one in enumerate(bars):
        for other in bars[:number]:
            if one["top"] == other["top"] != last:
                apart = max(one["left"], other["left"]) - min(
                    one["left"] + one["width"], other["left"] + other["width"]
                )
                assert apart > -2.01  # the narrowest are drawn two wide


@pytest.mark.parametrize(
    ("width", "scheme"),
    [slow(1280, "light"), (1280, "dark"), (800, "light"), slow(800, "dark")],
)
def test_wide_tables_of_reports_show_that_they_go_on(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    columns = [f"a column {number}" for number in range(20)]
    tables = [Table("wide", columns, [range(20)] * 4), Table("small", ["one"], [[1]])]
    report = Report("x", "x", "x", [Fact("errors", 1, "bad")], [Section("x", tables=tables)])
    write_report(report, tmp_path)
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide, small = tab.locator(".scroll").all()

    def shade(place: Any, edge: slice) -> float:
        """Return how far an edge is from the ground, below the heads of the columns."""
        shot = np.asarray(image.imread(io.BytesIO(place.screenshot()), format="png"))[..., :3]
        ground = rgb(tab.evaluate(GROUND))
        return float(np.median(np.abs(shot[40:, edge] - ground).max(2)))

    left, right = slice(0, 3), slice(-3, None)
    assert shade(wide, right) > 0.15 > 0.05 > shade(wide, left)
    wide.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    assert shade(wide, left) > 0.15 > 0.05 > shade(wide, right)
    assert shade(small, right) < 0.05
    # A tile stands out from the ground, and its words from the tile.
    tile, words = (
        np.array(re.findall(r"\d+", tab.evaluate(COLOUR.format(*of))), float)[:3] / 255
        for of in ((".tiles div", "backgroundColor"), (".tiles dd", "color"))
    )
    ground = rgb(tab.evaluate(GROUND))
    assert np.abs(tile - ground).max() > 0.02 and np.abs(words - tile).max() > 0.4
    tab.close()


GROUND = "getComputedStyle(document.documentElement).getPropertyValue('--ground').trim()"
COLOUR = "getComputedStyle(document.querySelector('{}')).{}"


# ---- Videos ------------------------------------------------------------------------------------


def test_hostile_names_play(browser: Any, folder: Path) -> None:
    name = "a#b ?100% '\"<\\script>&amp;.mp4"
    (folder / name).write_bytes((folder / "video.mp4").read_bytes())
    evil = "</script><img src=x onerror=alert(1)>"
    source = link_video(folder / name, folder / "evil.html")
    video = page_video(source, name=name, lanes={"fused": [Detection(evil, 1, 2, 0.9)]})
    (folder / "evil.html").write_text(render_page([video], CLASSES, evil))
    opened = Opened(browser, folder / "evil.html")
    assert opened.tab.locator("h1").inner_text() == f"Actions in {name}"
    assert opened.tab.locator("img").count() == 0
    assert evil in opened.tab.locator("#legend").inner_text()
    opened.tab.mouse.click(*opened.place(2.0))
    opened.settle()
    assert abs(opened.frame() - 2.0 * FPS) <= 1.5
    assert opened.complaints == []
    opened.tab.close()


def test_an_embedded_video_needs_no_file(browser: Any, folder: Path, tmp_path: Path) -> None:
    text = render_page([page_video(embed_video(folder / "video.mp4"))], CLASSES, "x")
    (tmp_path / "alone.html").write_text(text)
    opened = Opened(browser, tmp_path / "alone.html")
    opened.tab.mouse.click(*opened.place(4.0))
    opened.settle()
    assert abs(opened.frame() - 4.0 * FPS) <= 1.5
    assert opened.complaints == []
    opened.tab.close()


def test_what_cannot_be_played_is_told(browser: Any, folder: Path) -> None:
    """The timeline is of use without the picture; other videos of the page play."""
    write_numbered(folder / "old.avi", 30, ENCODINGS["MPEG-4 in AVI"])
    videos = [
        page_video("old.avi", name="old.avi", duration_s=1.2),
        page_video("gone%20away.mp4", name="gone away.mp4"),
        page_video("video.mp4"),
    ]
    (folder / "bad.html").write_text(render_page(videos, CLASSES, "x"))
    opened = Opened(browser, folder / "bad.html")
    told = opened.tab.locator("#unplayable")
    told.wait_for(state="visible")
    assert "old.avi cannot be played" in told.inner_text()
    opened.tab.mouse.click(*opened.place(0.6))
    assert opened.time == pytest.approx(0.6, abs=0.01)
    opened.tab.get_by_role("combobox", name="Video").select_option("gone away.mp4")
    opened.tab.wait_for_function(
        "() => document.getElementById('unplayable').textContent.includes('at gone away.mp4')"
    )
    opened.tab.get_by_role("combobox", name="Video").select_option("video.mp4")
    opened.tab.mouse.click(*opened.place(5.0))
    opened.settle()
    assert not told.is_visible()
    assert abs(opened.frame() - 5.0 * FPS) <= 1.5
    opened.tab.close()
