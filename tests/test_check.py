"""Looking at a dataset before training: planted defects are found, and nothing else is."""

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import cli
from configs.loader import load
from evaluate.annotations import Annotations
from extract.check import main, write_check
from extract.demo import DemoConfig, write_dataset
from extract.settings.sampling import SamplingConfig
from extract.video import guarded
from extract.video.header import announced_frames
from extract.video.indexing import video_index
from tests.conftest import REPOSITORY
from tests.encodings import ENCODINGS, write_numbered
from tests.marks import slow
from tests.odd_videos import joined, write_sizes
from tests.test_e2e import DEMO, script
from tests.test_probe import ACTOR, spoil_the_end
from tests.test_report import read
from train.config import Experiment
from train.data.items import VideoItem
from train.dataset_check.annotations import check_annotations, check_classes
from train.dataset_check.check import run_checks
from train.dataset_check.findings import exit_code
from train.dataset_check.lengths import PADDED, check_windows, find_complete, find_unlearned
from train.dataset_check.survey import Survey, survey_dataset
from train.dataset_check.updates import planned_updates
from train.modeling.config import HeadConfig

CLASSES = ("run", "jump", "throw")
FRAMES, FPS = 500, 25  # of the first video; 25 is what write_numbered writes
BY_FRAMES = ("--sampling.fps=null", "--sampling.snippet_stride=2")
LONG = ("--training.epochs=600", "--training.stop_epoch=600")  # updates enough for anybody
SUBSETS = ("training",) * 6 + ("validation", "test")


@dataclass
class Data:
    """A dataset of a test's own, to be spoilt."""

    folder: Path
    database: dict[str, Any]
    classes: list[str] = field(default_factory=lambda: list(CLASSES))
    settings: list[str] = field(default_factory=list)

    @property
    def first(self) -> dict[str, Any]:
        """The record of the first training video."""
        return self.database["training_0"]

    def path(self, name: str, suffix: str = ".mp4") -> Path:
        return self.folder / "videos" / (name + suffix)

    def add(self, start: float, end: float, label: str = "run", name: str = "training_0") -> None:
        self.database[name]["annotations"].append({"segment": [start, end], "label": label})

    def overrides(self) -> list[str]:
        """Write the annotations and return what points an experiment to them."""
        content = json.dumps({"database": self.database})
        (self.folder / "annotations.json").write_text(content)
        (self.folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.classes))
        return [
            f"--data.annotations={self.folder / 'annotations.json'}",
            f"--data.videos={self.folder / 'videos'}",
            f"--data.classes={self.folder / 'classes.txt'}",
            *BY_FRAMES,
            *LONG,
            *self.settings,
        ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Eight videos of 20 s, of different lengths, so that no two have the same content."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "videos").mkdir()
    database = {}
    for number, subset in enumerate(SUBSETS):
        name, frames = f"{subset}_{number}", FRAMES + number
        write_numbered(folder / "videos" / f"{name}.mp4", frames)
        # Two of each class, 1.6 s or 20 feature steps of 2 frames each.
        entries = [
            {"segment": [2.4 * place + 1, 2.4 * place + 2.6], "label": CLASSES[place % 3]}
            for place in range(6)
        ]
        database[name] = {
            "subset": subset,
            "duration": frames / FPS,
            "frame": frames,
            "fps": FPS,
            "annotations": entries,
        }
    return Data(folder, database)


@pytest.fixture
def data(whole: Data, tmp_path: Path) -> Data:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "data"))
    return Data(folder, json.loads(json.dumps(whole.database)))


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder of every video of the name "hangs" hang."""
    (tmp_path / "actors").mkdir()
    command = [sys.executable, "-c", ACTOR, str(tmp_path / "actors")]
    monkeypatch.setattr(guarded, "COMMAND", command)


def look(data: Data) -> tuple[int, dict[str, Any]]:
    """Check a dataset; return the exit code and what is in its file."""
    code = write_check(load(Experiment, DEMO, data.overrides()), data.folder / "check")
    return code, json.loads((data.folder / "check/check.json").read_text())


# ------------------------------------------------------------------ planted defects

MUCH_READING = (
    *("the end of a file is damaged", "a file is noise and will be skipped"),
    *("a matroska file is cut", "an mp4 file is cut between frames", "a name has two files"),
    *("only pyav can be trusted", "a frame rate is unusual"),
)

Plant = Callable[[Data], None]
PLANTS: dict[str, tuple[Plant, str, str, set[str | None]]] = {}  # severity, kind, videos


def plant(
    severity: str, kind: str, *videos: str | None, name: str = ""
) -> Callable[[Plant], Plant]:
    """Say what must be found, and in which videos; none of them: in no particular one."""

    def enter(function: Plant) -> Plant:
        title = (name or function.__name__).replace("_", " ")
        PLANTS[title] = function, severity, kind, set(videos or ["training_0"])
        return function

    return enter


@plant("error", "missing video")
def a_file_is_missing(data: Data) -> None:
    data.path("training_0").unlink()


@plant("error", "missing video", "training_0.mp4")
def a_name_has_an_extension(data: Data) -> None:
    data.database["training_0.mp4"] = data.database.pop("training_0")


@plant("error", "unreadable video")
def a_file_is_noise(data: Data) -> None:
    data.path("training_0").write_bytes(np.random.default_rng(0).bytes(5000))


@plant("error", "unreadable video")
def the_end_of_a_file_is_damaged(data: Data) -> None:
    spoil_the_end(data.path("training_0"))


@plant("warning", "unreadable video")
def a_file_is_noise_and_will_be_skipped(data: Data) -> None:
    a_file_is_noise(data)
    data.settings.append("--data.bad_videos=skip")


@plant("error", "truncated video")
def a_matroska_file_is_cut(data: Data) -> None:
    remux(data.path("training_0"), data.path("training_0", ".mkv"))
    cut(data.path("training_0", ".mkv"), 0.7)


@plant("error", "truncated video")
def an_mp4_file_is_cut_between_frames(data: Data) -> None:
    """Its header stands in front, as on the web, and its last frames are missing."""
    remux(data.path("training_0"), data.path("training_0", ".mp4"), movflags="faststart")
    with av.open(str(data.path("training_0"))) as container:
        begins = sorted(p.pos for p in container.demux(video=0) if p.pos is not None)
    content = data.path("training_0").read_bytes()
    data.path("training_0").write_bytes(content[: begins[200]])


@plant("error", "truncated video")
def an_avi_file_is_cut(data: Data) -> None:
    data.path("training_0").unlink()
    path = data.path("training_0", ".avi")
    write_numbered(path, FRAMES, ENCODINGS["MPEG-4 in AVI"])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"00dc", 0, 7 * len(content) // 10)])


@plant("error", "two files of one name")
def a_name_has_two_files(data: Data) -> None:
    shutil.copy(data.path("training_0"), data.path("training_0", ".mkv"))


@plant("info", "file without annotations", "stray")
def a_file_has_no_annotations(data: Data) -> None:
    write_numbered(data.path("stray"), 30)


@plant("error", "training video again in another subset", "copy")
def a_training_video_is_tested(data: Data) -> None:
    shutil.copy(data.path("training_0"), data.path("copy"))
    data.database["copy"] = {**data.first, "subset": "test"}


@plant("warning", "duplicate video", "copy")
def a_training_video_is_there_twice(data: Data) -> None:
    shutil.copy(data.path("training_0"), data.path("copy"))
    data.database["copy"] = data.first


@plant("info", "read by the slower reader")
def only_pyav_can_be_trusted(data: Data) -> None:
    data.path("training_0").unlink()
    write_numbered(data.path("training_0", ".ts"), FRAMES, ENCODINGS["MPEG transport stream"])


@plant("warning", "clock that jumps")
def recordings_were_joined(data: Data) -> None:
    data.path("training_0").unlink()
    joined(data.path("training_0", ".ts"), [FRAMES - 100, 100], [30, 2])


@plant("error", "subset that no video is in", None)
def a_subset_is_misspelt(data: Data) -> None:
    data.settings.append("--data.validation_subset=valid")


@plant("info", "subset that is not used", None)
def a_subset_is_not_used(data: Data) -> None:
    data.database["gone"] = {"subset": "extra", "annotations": []}


@plant("warning", "one subset to train and to test on", None)
def training_videos_are_tested(data: Data) -> None:
    data.settings.append("--data.test_subset=training")


@plant("error", "subset without an action", None)
def nothing_can_be_validated(data: Data) -> None:
    data.database["validation_6"]["annotations"] = []


@plant("info", "training video without an action")
def a_training_video_is_empty(data: Data) -> None:
    data.first["annotations"] = []


@plant("error", "outside the video")
def an_action_ends_far_behind(data: Data) -> None:
    data.add(5, 100)


@plant("error", "outside the video", name="far past the file's end")
def an_action_ends_far_behind_the_file(data: Data) -> None:
    unmeasured(data)
    data.add(5, 100)


@plant("error", "outside the video")
def an_action_begins_before_the_video(data: Data) -> None:
    data.add(-1, 2)


@plant("warning", "segments kept though outside their video")
def an_action_ends_behind(data: Data) -> None:
    data.add(19, 22)


@plant("warning", "segments kept though outside their video", name="past the file's end")
def an_action_ends_behind_the_file(data: Data) -> None:
    unmeasured(data)
    data.add(19, 22)


@plant("info", "segments clipped to the end of their video")
def an_action_ends_a_little_behind(data: Data) -> None:
    data.add(19, 20.01)


@plant("error", "reversed segment")
def an_action_ends_before_it_begins(data: Data) -> None:
    data.add(5, 4)


@plant("warning", "segments of zero length dropped")
def an_action_takes_no_time(data: Data) -> None:
    data.add(5, 5)


@plant("warning", "exact duplicates dropped")
def an_action_is_annotated_twice(data: Data) -> None:
    data.first["annotations"].append(data.first["annotations"][0])


@plant("error", "unknown label")
def a_label_is_misspelt(data: Data) -> None:
    data.add(5, 6, "rnu")


@plant("info", "'Ambiguous' annotations dropped")
def a_label_is_ignored(data: Data) -> None:
    data.add(5, 6, "Ambiguous")


@plant("error", "malformed annotation")
def a_time_is_no_number(data: Data) -> None:
    data.first["annotations"][3]["segment"] = [1, "later"]


@plant("error", "malformed annotation")
def a_video_has_no_subset(data: Data) -> None:
    del data.first["subset"]


@plant("error", "times in another unit")
def times_are_frames(data: Data) -> None:
    times(data, FPS)


@plant("error", "times in another unit", name="times are frames, the file alone knows its length")
def times_are_frames_of_the_file(data: Data) -> None:
    unmeasured(data)
    times(data, FPS)


@plant("error", "times in another unit")
def times_are_milliseconds(data: Data) -> None:
    times(data, 1000)


@plant("warning", "videos whose file is longer or shorter than annotated")
def a_video_should_last_longer(data: Data) -> None:
    data.first["duration"] *= 1.3


@plant("error", "file of another length")
def a_video_should_last_much_longer(data: Data) -> None:
    data.first["duration"] *= 3


@plant("warning", "number of frames other than annotated")
def a_video_should_have_more_frames(data: Data) -> None:
    data.first["frame"] = 600


@plant("warning", "frame rate other than annotated")
def a_video_should_have_another_rate(data: Data) -> None:
    data.first["fps"] = 30


@plant("warning", "class without a training example", None)
def a_class_is_never_annotated(data: Data) -> None:
    data.classes.append("fly")


@plant("warning", "class that is tested but never trained", None)
def a_class_is_only_tested(data: Data) -> None:
    data.classes.append("fly")
    data.add(16, 17, "fly", "test_7")


@plant("warning", "class with few training examples", None)
def a_class_has_few_examples(data: Data) -> None:
    data.classes.append("fly")
    data.add(16, 17, "fly")


@plant("warning", "labels that hardly differ", None)
def two_labels_hardly_differ(data: Data) -> None:
    other = data.classes[1]
    data.classes[1] = "Run"
    for record in data.database.values():
        for entry in record["annotations"]:
            entry["label"] = entry["label"].replace(other, "Run")


@plant("warning", "flips exchange left and right", None)
def labels_name_a_side(data: Data) -> None:
    data.settings.append("--pixels.flip=0.5")
    data.classes[0] = "run_to_the_left"
    for record in data.database.values():
        for entry in record["annotations"]:
            entry["label"] = entry["label"].replace("run", "run_to_the_left")


@plant("warning", "action that no training window holds")
def an_action_is_longer_than_the_window(data: Data) -> None:
    data.add(1, 19)  # 225 steps of 2 frames; the window has 128, and three quarters must be there


@plant("warning", "action that no point learns")
def an_action_lies_between_two_steps(data: Data) -> None:
    data.add(4.045, 4.085)  # frames 101 and 102, steps 50.5 and 51


@plant("warning", "action shorter than a feature step", "test_7")
def a_tested_action_is_shorter_than_a_step(data: Data) -> None:
    data.add(4.045, 4.085, name="test_7")


@plant("warning", "window shorter than ordinary actions", None)
def windows_are_short(data: Data) -> None:
    # 16 of 20 steps are enough to learn an action, but no window shows it whole.
    data.settings.append("--sampling.window_size=16")


@plant("warning", "windows are mostly padding", None)
def windows_are_long(data: Data) -> None:
    data.settings.append("--sampling.window_size=1024")


@plant("warning", "few updates", None)
def a_run_has_few_updates(data: Data) -> None:
    """Six videos in batches of four are one update an epoch."""
    data.settings.append("--training.stop_epoch=499")


@plant("warning", "unusual frame rate")
def a_frame_rate_is_unusual(data: Data) -> None:
    write_at_rate(data, "training_0", 60)


@plant("warning", "unusual frame rate", "test_7")
def a_test_video_has_another_rate_than_those_of_training(data: Data) -> None:
    write_at_rate(data, "test_7", 30)


def write_at_rate(data: Data, name: str, rate: int) -> None:
    """Write 20 s of a video anew, with so many frames a second."""
    with av.open(str(data.path(name)), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for number in range(20 * rate):
            picture = np.full((64, 128, 3), number % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    unmeasured(data, name)


def remux(source: Path, target: Path, **options: str) -> None:
    """Put a file's packets into another container."""
    aside = source.rename(source.with_name("aside"))
    with av.open(str(aside)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    aside.unlink()


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def times(data: Data, factor: float) -> None:
    for entry in data.first["annotations"]:
        entry["segment"] = [factor * time for time in entry["segment"]]


def unmeasured(data: Data, name: str = "training_0") -> None:
    """Leave it to the file how long a video is."""
    for key in ("duration", "frame", "fps"):
        del data.database[name][key]


@pytest.mark.parametrize(
    "title", [slow(title) if title in MUCH_READING else title for title in PLANTS]
)
def test_a_planted_defect_is_found_and_nothing_else(data: Data, title: str) -> None:
    spoil, severity, kind, videos = PLANTS[title]
    spoil(data)
    found = run_checks(survey_dataset(load(Experiment, DEMO, data.overrides())))
    told = [finding for finding in found if finding.kind.severity != "info"] or found
    assert {(finding.kind.severity, finding.kind.name) for finding in told} == {(severity, kind)}
    assert {finding.video for finding in told} == videos
    assert exit_code(found) == {"info": 0, "error": 1, "warning": 2}[severity]


def test_videos_whose_actions_are_all_too_short_make_no_updates(data: Data) -> None:
    """`data.min_share` leaves them out of training."""
    data.add(1, 15)
    survey = survey_dataset(
        load(Experiment, DEMO, [*data.overrides(), "--training.global_batch=1"])
    )
    assert planned_updates(survey)[0] == 6
    config = replace(survey.config, data=replace(survey.config.data, min_share=0.5))
    assert planned_updates(replace(survey, config=config))[0] == 1


@pytest.mark.slow
def test_pictures_of_several_sizes_are_told(data: Data) -> None:
    data.path("training_0").unlink()
    write_sizes(data.path("training_0", ".webm"), "libvpx", [(96, 64), (48, 32)], FRAMES // 2)
    found = run_checks(survey_dataset(load(Experiment, DEMO, data.overrides())))
    (told,) = [finding for finding in found if finding.kind.name == "pictures of several sizes"]
    assert told.text == "training_0.webm: 96 × 64 at first, then 48 × 32"
    assert exit_code(found) == 0


@pytest.mark.slow
def test_a_hanging_video_is_told_from_a_damaged_one(data: Data, hanging: None) -> None:
    data.path("training_0").rename(data.path("hangs"))
    data.database["hangs"] = data.database.pop("training_0")
    data.path("training_1").write_bytes(b"noise" * 100)
    # A content of its own: what is remembered of it would be believed.
    with data.path("hangs").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    found = run_checks(survey_dataset(load(Experiment, DEMO, data.overrides()), timeout_s=2.0))
    told = {finding.video: finding.kind.name for finding in found}
    assert told == {"hangs": "hanging video", "training_1": "unreadable video"}


def survey(folder: Path, table: str) -> Survey:
    """Return the survey of a table of annotations whose videos are not there."""
    (folder / "actions.csv").write_text(table)
    settings = ("annotations=actions.csv", "videos=", "classes=null", "validation_subset=null")
    paths = [f"--data.{each}".replace("=actions", f"={folder}/actions") for each in settings]
    paths[1] += str(folder)
    return survey_dataset(load(Experiment, DEMO, paths))


def test_a_misspelt_label_is_told_with_the_class_that_it_may_be(tmp_path: Path) -> None:
    rows = [("a", "bounce")] * 12 + [("b", "bonce"), ("b", "spin 2"), ("t", "bouncee")]
    rows += [("a", "spin 1")] * 11 + [("a", "left")] * 12 + [("a", "right")]
    table = "".join(
        f"{video},{time},{time + 1},{label},{'test' if video == 't' else 'training'}\n"
        for time, (video, label) in enumerate(rows)
    )
    found = check_classes(survey(tmp_path, "video,start,end,label,subset\n" + table))
    assert [finding.text for finding in found] == [
        "bonce: 1 example; is it 'bounce' (12 examples), misspelt in b?",
        "bouncee: no training example, 1 test example; is it 'bounce' (12 examples), "
        "misspelt in t?",
        "right: 1 example",
        "spin 2: 1 example",  # a number is no slip
    ]


def test_what_reading_tolerates_of_a_whole_file_is_told(tmp_path: Path) -> None:
    rows = "a.mp4,1,2,run,train\na.mp4,3,4,run,training\na.mp4,5,6,run,training\n"
    rows += "b.mp4,1,2,run,test\nb.mp4,1,2,run,test\n"
    found = list(check_annotations(survey(tmp_path, "video,begin,end,label,subset\n" + rows)))
    assert {finding.kind.severity for finding in found} == {"warning", "info"}
    assert sorted(finding.text for finding in found) == [
        "columns 'begin' read as 'start': 1",
        "rows with the subset 'train' read as 'training': 1",
        "video 'b', entry 1",  # a duplicate, which has a place
        "videos given by their files, read without the ending: 2",
    ]


def test_without_a_folder_of_videos_there_is_one_message(data: Data) -> None:
    data.settings.append(f"--data.videos={data.folder / 'gone'}")
    with pytest.raises(ValueError, match=r"data\.videos: there is no folder .*gone"):
        look(data)


def test_all_defects_are_found_at_once(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    """In one pass, through whatever would stop training first."""
    data.path("training_0").unlink()
    for name in ("training_1", "training_2", "training_3", "training_4", "training_5"):
        data.add(5, 4, name=name)
        data.add(5, 6, "rnu", name)
    data.database["broken"] = "nothing"
    data.settings += ["--sampling.window_size=16", "--data.test_subset=tset"]
    code, found = look(data)
    counted = {kind["kind"]: kind["count"] for kind in found["kinds"]}
    assert code == 1 and counted == {
        "missing video": 1,
        "reversed segment": 5,
        "unknown label": 5,
        "malformed annotation": 1,
        "subset that no video is in": 1,
        "window shorter than ordinary actions": 1,
        "subset that is not used": 1,
    }
    assert found["counts"] == {"error": 13, "warning": 1, "info": 1}
    # The table has the first places of each kind, counts the rest, and says what to do.
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("unknown label") == 1 and "- … and 2 more" in text
    assert text.count("entry 6: the segment ends at 4.0 s, before its start 5.0 s") == 3
    assert "error 5 reversed segment" in text
    assert all(f"=> {kind['advice']}" in text for kind in found["kinds"])
    assert "error: 13, warning: 1, info: 1" in text


def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path: Path) -> None:
    """The list (ISO 14496-12, elst) begins a track later than its first frame."""
    path = tmp_path / "clip.mp4"
    write_numbered(path, 200, ENCODINGS["intra only"])
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4 + 8  # after version, flags and the number of entries
    (duration,) = struct.unpack_from(">I", content, at)  # in the movie's milliseconds
    struct.pack_into(">Ii", content, at, duration - 2000, 50 * 512)  # 12800 units a second
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 200
    index = video_index(path)
    assert len(index.pts) == announced_frames(path, index) == 150


@settings(deadline=None, max_examples=100)
@given(
    begins=st.integers(0, 480),
    length=st.integers(0, 500),
    stride=st.sampled_from([2, 4, 8]),
    share=st.sampled_from([0.3, 0.75, 1.0]),
)
@pytest.mark.slow
def test_what_can_be_learned_by_the_formula(
    begins: int, length: int, stride: int, share: float
) -> None:
    """Against every window and every point, one by one (ActionFormer, section 3.3)."""
    first, last = float(begins), float(min(500, begins + length))
    size, levels = 32, 3
    sampling = SamplingConfig(window_size=size, snippet_stride=stride, min_completeness=share)
    config = replace(load(Experiment, DEMO), sampling=sampling, head=HeadConfig(levels=levels))
    segments = np.array([[first, last]])
    item = VideoItem("clip", Path("clip"), 500, 20.0, 25.0, segments, np.zeros(1, np.int64), ())
    seen = Survey(config, Annotations({}, (), {}), [], {}, {}, {})

    steps = -(-500 // stride)
    start, end = first / stride, last / stride
    fits, learned = False, False
    for window in range(max(steps - size, 0) + 1):
        stop = min(window + size, steps)
        held = max(0.0, min(end, stop) - max(start, window))
        fits |= end > start and held >= share * (end - start)
        for level in range(levels):
            low, high = [(0, 4), (4, 8), (8, 1e4)][level]
            for point in range(window, window + size, 2**level):
                farther = max(point - start, end - point)
                near = abs(point - (start + end) / 2) < 1.5 * 2**level
                learned |= start < point < end and near and low <= farther <= high
    if end > start:
        assert bool(find_complete(item, seen)[0]) == fits
    if end - start <= size / 2 and end <= steps:
        assert bool(find_unlearned(item, seen)[0]) == (not learned)


def test_training_windows_are_counted_though_whole_videos_are_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sampling.test_whole` is no matter of training: windows stay as long as they are."""
    config = load(Experiment, REPOSITORY / "configs/features/thumos14_i3d.yaml")
    sampling = SamplingConfig("window", 32, 2, test_whole=True)
    config = replace(config, sampling=sampling, head=HeadConfig(levels=3))
    # An action of 40 feature steps, of which a window in the middle holds 32; videos of 10 steps.
    action = np.array([[200.0, 360.0]])
    items = [
        VideoItem("clip", Path("clip"), frames, 20.0, 25.0, action, np.zeros(1, np.int64), ())
        for frames in (500, 40, 40, 40)
    ]
    monkeypatch.setattr(Survey, "items", lambda self, subset: items)
    checked = Survey(config, Annotations({}, (), {}), [], {}, {}, {})
    assert find_complete(items[0], checked)[0]
    (padded,) = [found for found in check_windows(checked) if found.kind is PADDED]
    assert padded.numbers["padding"] == pytest.approx(1 - (32 + 3 * 10) / 4 / 32)


# ------------------------------------------------------------------ what is left


def test_the_file_and_the_picture_are_whole(data: Data) -> None:
    data.add(1, 19)
    _, found = look(data)
    (entry,) = found["findings"]
    assert set(entry) == {"kind", "severity", "video", "entry", "text", "numbers"}
    assert entry["entry"] == 6 and "[1, 19] s" in entry["text"]
    assert entry["numbers"] == {"start_s": 1, "end_s": 19, "steps": 225}
    picture = matplotlib.image.imread(data.folder / "check/check.png")
    height, width, _ = picture.shape
    assert height > 300 and width >= 800 and np.ptp(picture) == 1
    names = {file.name for file in (data.folder / "check").iterdir()}
    assert names == {"check.json", "check.png", "report.html", "report.json"}


def test_the_report_has_what_was_found(data: Data) -> None:
    data.add(1, 19)
    for _ in range(3):
        data.add(2, 90)
    code, found = look(data)
    page, content = read(data.folder / "check")
    assert content["kind"] == "Dataset check" and code == 1
    counts = found["counts"]["error"], found["counts"]["warning"]
    assert (content["facts"]["errors"], content["facts"]["warnings"]) == counts
    kinds = {row[0]: (row[1], row[2]) for row in content["tables"]["kinds"]["rows"]}
    assert kinds == {k["kind"]: (k["severity"], k["count"]) for k in found["kinds"]}
    shown = {
        (video, text)
        for name, table in content["tables"].items()
        if name.partition(":")[0] in ("error", "warning", "info")
        for video, text in table["rows"]
    }
    assert shown == {(entry["video"], entry["text"]) for entry in found["findings"]}
    assert all(kind["advice"] in page.text for kind in found["kinds"])
    assert "check.json" in page.attributes("href")


@pytest.mark.parametrize("known", [True, False])
def test_places_are_those_of_the_whole_list(data: Data, known: bool) -> None:
    """Entries that reading drops count, too, whether the file or the JSON says how long it is."""
    if not known:
        unmeasured(data)
    entries = data.first["annotations"]
    entries.insert(0, {"segment": [5, 5], "label": "run"})
    entries.insert(2, entries[1])
    data.add(2, 90)
    data.add(5, 4)
    data.add(19, 22)
    data.add(1, 19)
    _, found = look(data)
    assert {entry["kind"]: entry["entry"] for entry in found["findings"]} == {
        "segments of zero length dropped": 0,
        "exact duplicates dropped": 2,
        "outside the video": 8,
        "reversed segment": 9,
        "segments kept though outside their video": 10,
        "action that no training window holds": 11,
    }


def test_windows_are_suggested(data: Data) -> None:
    _, found = look(data)
    # 1.6 s are 40 frames: 40 / 6 rounds to 7 a step. Three times 40 / 7 steps are 17.1, and the
    # next multiple of 16 frames of a clip and of 2⁴, the coarsest stride of 5 levels, is 32.
    suggestion = found["suggestion"]
    assert (suggestion["window_size"], suggestion["snippet_stride"]) == (32, 7)
    assert "25 frames/s" in suggestion["reason"] and "1.60 s" in suggestion["reason"]
    data.settings += ["--sampling.scale_factor=2", "--head.levels=7"]
    data.settings += ["--sampling.snippet_stride=4", "--sampling.window_size=128"]
    _, found = look(data)
    # A multiple of 2 frames a step, and of 2⁶ steps.
    suggestion = found["suggestion"]
    assert (suggestion["window_size"], suggestion["snippet_stride"]) == (64, 6)


def test_what_is_suggested_is_accepted_and_clean(data: Data) -> None:
    _, found = look(data)
    for name in ("window_size", "snippet_stride"):
        data.settings.append(f"--sampling.{name}={found['suggestion'][name]}")
    code, found = look(data)
    assert code == 0 and not found["findings"]


def test_a_resized_video_has_no_stride_to_suggest(data: Data) -> None:
    data.add(1, 19)  # one window holds everything
    data.settings.append("--sampling.method=resize")
    code, found = look(data)
    assert code == 0 and not found["findings"] and found["suggestion"] is None


# ------------------------------------------------------------------ the script


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The demo dataset, smaller."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    sizes = DemoConfig(training=14, validation=2, test=3, shortest=20, longest=26)
    write_dataset(folder, sizes, processes=2)
    yield [
        f"--data.annotations={folder / 'annotations.json'}",
        f"--data.videos={folder / 'videos'}",
        f"--data.classes={folder / 'classes.txt'}",
    ]


@pytest.mark.slow
def test_the_demo_dataset_is_clean(demo: list[str], tmp_path: Path) -> None:
    out = tmp_path / "check"
    done = script("extract/check.py", "--config", DEMO, *demo, *LONG, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error: 0, warning: 0, info: 0" in done.stdout and "suggested: " in done.stdout
    assert "a run: 3 updates an epoch, 1800 in all" in done.stdout
    assert json.loads((tmp_path / "check/check.json").read_text())["findings"] == []
    assert (tmp_path / "check/check.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (a_file_is_missing, 1),
        pytest.param(an_action_takes_no_time, 2, marks=pytest.mark.slow),
        pytest.param(unmeasured, 0, marks=pytest.mark.slow),
    ],
)
def test_exit_codes(data: Data, spoil: Plant, code: int) -> None:
    spoil(data)
    config = DEMO.read_text().replace("out: runs/demo/forward", f"out: {data.folder / 'run'}")
    (data.folder / "mine.yaml").write_text(config)
    done = script("extract/check.py", "--config", data.folder / "mine.yaml", *data.overrides())
    assert done.returncode == code, done.stdout + done.stderr
    assert ("missing video" in done.stdout, "zero length" in done.stdout) == (code == 1, code == 2)
    assert (data.folder / "run/check/check.json").is_file()  # in the config's own out folder


def test_what_cannot_be_read_at_all_is_one_line(data: Data) -> None:
    options = data.overrides()
    (data.folder / "annotations.json").write_text("{")
    done = script("extract/check.py", "--config", DEMO, *options, "--out", data.folder)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "annotations.json is not valid JSON" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "no config at none.yaml"),
        (["--config", DEMO, "--data.videso=x"], "did you mean 'data.videos'"),
        (["--config", DEMO, "--out", DEMO], "forward.yaml is a file; choose a folder"),
        (["--config", DEMO, "--data.annotations=no.json"], "data.annotations: there is no file"),
    ],
)
def test_a_wrong_setting_is_one_line(
    arguments: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", f"--out={tmp_path}", *map(str, arguments)])
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{message}[^\n]*$"):
        cli.run(main)


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--config"], 1), (["--help"], 0)])
def test_wrong_usage_is_no_warning(
    arguments: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """argparse itself would end with 2."""
    monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == code
    assert ("2 warnings only" in capsys.readouterr().out) == (code == 0)  # --help tells the codes
