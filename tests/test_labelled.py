"""Lists of labelled clips in every layout, and the files that they are matched with."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evaluate.datasets.classes import read_classes
from evaluate.metrics.accuracy import LabelSet
from tests.encodings import write_numbered
from train.data.items import Subset
from train.recognition.clip_lists import BY_CHANCE, LabelledClip, read_clip_list
from train.recognition.config import LabelledData
from train.recognition.dataset import (
    Example,
    TrainingViews,
    label_swaps,
    load_examples,
    probe_example,
    read_clips,
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "video.mp4"
    write_numbered(path, 50)  # 2 s
    return path


def put(folder: Path, video: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / name)


def data_of(annotations: Path, videos: Path | None = None, **more: object) -> LabelledData:
    where = str(videos) if videos else None
    subsets = {"train_subset": "training", "validation_subset": None, "test_subset": "test"}
    return LabelledData(str(annotations), where, **(subsets | more))  # type: ignore[arg-type]


def loaded(data: LabelledData, *subsets: str) -> list[Subset[Example]]:
    return load_examples(data, read_clips(data), subsets or ["training"])


def spans(clips: list[LabelledClip]) -> list[tuple[str, tuple[str, ...], object, str]]:
    return [(clip.video[0], clip.labels, clip.span_s, clip.subset) for clip in clips]


# ------------------------------------------------------------------ layouts


def test_class_folders(tmp_path: Path, video: Path) -> None:
    put(tmp_path, video, "train/Run/a.mp4", "train/Jump/b.MP4", "test/Run/a.mp4")
    (tmp_path / "train/Run/notes.txt").write_text("no video")
    data = data_of(tmp_path, train_subset="train")
    training, test = loaded(data, "train", "test")
    clips = read_clips(data)
    assert clips.sets == (LabelSet("", ("Jump", "Run")),) and not clips.warnings
    assert [(e.item.path.name, e.labels) for e in training] == [
        ("b.MP4", (0,)),
        ("a.mp4", (1,)),
    ]
    assert [e.item.path for e in test] == [tmp_path / "test/Run/a.mp4"]
    assert test[0].stretch == (0, 50, 25.0)


def test_what_a_decoder_reads_counts_and_not_the_suffix(tmp_path: Path, video: Path) -> None:
    put(tmp_path, video, "train/Run/a", "train/Run/b.clip", "train/Jump/c.mp4", "train/Jump/c.dat")
    (tmp_path / "train/Run/notes.txt").write_text("no video")
    data = data_of(tmp_path, train_subset="train")
    (training,) = loaded(data, "train")
    assert {e.item.path.name for e in training} == {"a", "b.clip", "c.mp4"}
    lists = tmp_path / "list.csv"
    lists.write_text("video,label,subset\na,run,training\nb.clip,run,training\nc,jump,training\n")
    (training,) = loaded(data_of(lists, tmp_path), "training")
    assert {e.item.path.name for e in training} == {"a", "b.clip", "c.mp4"}


def test_class_folders_without_subsets_are_shared_out(tmp_path: Path, video: Path) -> None:
    names = [f"{label}/{n}.mp4" for label in ("Run", "Jump") for n in range(20)]
    put(tmp_path, video, *names)
    clips = read_clip_list(tmp_path)
    subsets = {clip.subset for clip in clips.clips}
    assert len(clips.clips) == 40 and subsets == {"training", "test"}
    assert clips.warnings == {BY_CHANCE: 40}
    moved = tmp_path / "elsewhere"
    put(moved, video, *names)
    assert [c.subset for c in read_clip_list(moved).clips] == [c.subset for c in clips.clips]


def test_own_tables(tmp_path: Path, video: Path) -> None:
    put(tmp_path / "videos", video, "one.mp4", "deep/two.mp4")
    table = tmp_path / "list.csv"
    table.write_text(
        "Video,label,start,end,subset\n"
        "one,Run,,,training\n"
        "one.mp4,Jump,0.4,0:01.2,training\n"
        "deep/two.mp4,Run,1.6,9,training\n"
        "two,,,,test\n"
    )
    clips = read_clip_list(table)
    assert spans(clips.clips) == [
        ("one", ("Run",), None, "training"),
        ("one.mp4", ("Jump",), (0.4, 1.2), "training"),
        ("deep/two.mp4", ("Run",), (1.6, 9.0), "training"),
        ("two", (), None, "test"),
    ]
    training, test = loaded(data_of(table, tmp_path / "videos"), "training", "test")
    found = [(e.name, e.stretch[:2], e.labels) for e in training]
    assert found == [
        ("one", (0, 50), (1,)),
        ("one.mp4, 0.4-1.2 s", (10, 20), (0,)),
        ("deep/two.mp4, 1.6-9 s", (40, 10), (1,)),
    ]
    assert test[0].item.path.name == "two.mp4" and test[0].labels == ()


def test_tables_of_a_folder_tell_their_subset(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video,label\na,Run\n")
    (tmp_path / "my_val.csv").write_text("video,label\nb,Jump\n")
    assert spans(read_clip_list(tmp_path).clips) == [
        ("b", ("Jump",), None, "validation"),
        ("a", ("Run",), None, "training"),
    ]


def test_kinetics(tmp_path: Path, video: Path) -> None:
    """As published: label,youtube_id,time_start,time_end,split; files as the downloader cuts."""
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "testifying,---QUuC4vJs,84,94,train\nair drumming,--3ouPhoy2A,20,30,train\n"
    )
    (tmp_path / "test.csv").write_text(
        "youtube_id,time_start,time_end,split,label\nabc,1,11,test,\n"
    )
    names = tmp_path / "kinetics_classnames.json"
    names.write_text(json.dumps({'"air drumming"': 0, "testifying": 1}))
    put(tmp_path / "v", video, "---QUuC4vJs_000084_000094.mp4", "air drumming/--3ouPhoy2A.mp4")
    put(tmp_path / "v", video, "abc.mp4")
    data = data_of(tmp_path, tmp_path / "v", classes=(str(names),))
    training, test = loaded(data, "train", "test")
    assert [e.labels for e in training] == [(1,), (0,)] and test[0].labels == ()
    assert read_clips(data).sets[0].classes == ("air drumming", "testifying")


def test_something_something(tmp_path: Path, video: Path) -> None:
    """As published: three lists of objects and one object with every template's number."""
    labels = {"Moving something up": "1", "Covering something with something": "0"}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    entries = [
        {
            "id": "78687",
            "label": "covering a cup with paper",
            "template": "Covering [something] with [something]",
            "placeholders": ["a cup", "paper"],
        },
        {"id": "42326", "label": "moving a pen up", "template": "Moving [something] up"},
    ]
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps(entries))
    (tmp_path / "something-something-v2-validation.json").write_text(json.dumps(entries[:1]))
    (tmp_path / "something-something-v2-test.json").write_text(json.dumps([{"id": 9}]))
    put(tmp_path / "v", video, "78687.webm", "42326.webm", "9.webm")
    names = (str(tmp_path / "something-something-v2-labels.json"),)
    data = data_of(tmp_path, tmp_path / "v", classes=names)
    training, held, test = loaded(data, "training", "validation", "test")
    assert [(e.name, e.labels) for e in training] == [("78687", (0,)), ("42326", (1,))]
    assert len(held) == 1 and test[0].labels == ()
    mirrored = label_swaps([("Moving something up", 0)], read_clips(data).sets, "data.mirrored")
    assert mirrored == {0: 1, 1: 0}


EPIC = (
    "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,"
    "noun_class\n"
)


def epic(folder: Path) -> tuple[str, str]:
    (folder / "EPIC_100_train.csv").write_text(
        EPIC + "P01_01_0,P01,P01_01,00:00:00.40,00:00:01.20,turn-on,1,light,0\n"
        "P01_01_1,P01,P01_01,00:00:01.00,00:00:02.00,take,0,light,0\n"
    )
    (folder / "EPIC_100_validation.csv").write_text(
        EPIC + "P02_01_0,P02,P02_01,00:00:00.00,00:00:02.00,take,0,cup,1\n"
    )
    for kind, names in (("verb", ("take", "turn-on")), ("noun", ("light", "cup"))):
        rows = "".join(f'{k},{name},"[]"\n' for k, name in enumerate(names))
        (folder / f"EPIC_100_{kind}_classes.csv").write_text("id,key,instances\n" + rows)
    return (
        str(folder / "EPIC_100_verb_classes.csv"),
        str(folder / "EPIC_100_noun_classes.csv"),
    )


def test_epic_kitchens_has_a_verb_and_a_noun(tmp_path: Path, video: Path) -> None:
    lists = epic(tmp_path)
    put(tmp_path / "v", video, "P01/videos/P01_01.MP4", "P02/videos/P02_01.MP4")
    data = data_of(tmp_path, tmp_path / "v", classes=lists)
    training, test = loaded(data, "training", "validation")
    sets = read_clips(data).sets
    assert sets == (LabelSet("verb", ("take", "turn-on")), LabelSet("noun", ("light", "cup")))
    assert [e.labels for e in training] == [(1, 0), (0, 0)]
    assert [e.stretch[:2] for e in training] == [(10, 20), (25, 25)]
    assert test[0].labels == (0, 1)
    single = data_of(tmp_path, tmp_path / "v", classes=lists[:1])
    assert [e.labels for e in loaded(single)[0]] == [(1,), (0,)]


def test_segments_of_detection_datasets_are_clips(data: list[str]) -> None:
    """The demo's actions, trimmed."""
    annotations, videos, classes = (Path(each.split("=", 1)[1]) for each in data[:3])
    of = data_of(annotations, videos, classes=(str(classes),))
    (kept,) = loaded(of)
    truth = json.loads(annotations.read_text())["database"]
    names = classes.read_text().split()
    expected = [
        (names.index(a["label"]), a["segment"], video["fps"])
        for video in truth.values()
        if video["subset"] == "training"
        for a in video["annotations"]
    ]
    assert len(kept) == len(expected) > 0 and not kept.skipped
    for one, (label, (start, end), fps) in zip(kept, expected, strict=True):
        assert one.labels == (label,)
        assert abs(one.stretch.first - start * fps) <= 1
        last = one.stretch.first + one.stretch.length
        assert abs(last - end * fps) <= 1.01
        assert one.stretch.fps == pytest.approx(fps)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "video,label,start,end\na,Run,3,1\n", r"a\.csv: line 2.*from 3 to 1"),
        ("a.csv", "video,label,start,end\na,Run,x,1\n", r"a\.csv: line 2.*start.*finite number"),
        ("a.csv", "video,label,start,end\na,Run,1,\n", r"a\.csv: line 2.*end.*finite number"),
        ("a.csv", "video,label\n,Run\n", r"a\.csv: line 2.*'video' is empty"),
        ("a.csv", "video,label,subset\na,Run,\n", r"line 2.*'subset' is empty"),
        ("a.csv", "video,label\na,\n", "data.classes must name the classes"),
        ("a.csv", "film,label\na,Run\n", r"a\.csv: line 1: column"),
        ("a.json", '[{"template": "x"}]', r"a\.json: entry 0.*'id'"),
        ("a.json", '[{"id": "1", "template": 5}]', r"entry 0.*'template' must be a text"),
        ("a.json", "[3]", r"a\.json: entry 0"),
        ("a.json", '{"id": 1}', "database"),
        ("a.json", "[", "not valid JSON"),
        ("a.csv", "label,youtube_id,time_start,time_end,split\nx,y,a,2,train\n", "line 2.*finite"),
    ],
)
def test_malformed_lists_name_their_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_clip_list(tmp_path / name)


def test_impossible_combinations_are_refused(tmp_path: Path, video: Path) -> None:
    lists = [Path(file) for file in epic(tmp_path)]
    table = tmp_path / "own.csv"
    table.write_text("video,label,subset\na,Runn,training\nb,Run,training\n")
    classes = tmp_path / "classes.txt"
    classes.write_text("Run\nJump\n")
    for path, names, message in (
        (table, [classes], r"own\.csv: line 2: label 'Runn'.*did you mean 'Run'"),
        (table, lists, "one label a clip, but data.classes names two"),
        (table, [classes] * 3, "at most two"),
        (table, [tmp_path / "absent.txt"], r"data.classes: there is no file .*absent"),
        (tmp_path / "absent", [], r"data.annotations: there is no file or folder"),
        (tmp_path / "EPIC_100_train.csv", [lists[0]] * 2, "lists of the same"),
    ):
        with pytest.raises(ValueError, match=message):
            read_clip_list(path, names)
    (tmp_path / "nothing/here").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no clips"):
        read_clip_list(tmp_path / "nothing")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "a.csv").write_text("video,label\na,Run\n")
    (mixed / "b.json").write_text('[{"id": "1", "template": "x"}]')
    with pytest.raises(ValueError, match=r"several layouts, as a\.csv and b\.json"):
        read_clip_list(mixed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "b": 2}', "must be 0, 1, 2"),
        ('{"a": "x"}', "finite number"),
        ("[1]", "expected an object"),
        ("{}", "expected an object"),
        ('{"a": 0, "\\"a\\"": 1}', "twice"),
    ],
)
def test_wrong_class_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(path)


def test_missing_and_broken_videos_are_listed_together(tmp_path: Path, video: Path) -> None:
    put(tmp_path / "v", video, "good.mp4")
    (tmp_path / "v/broken.mp4").write_bytes(video.read_bytes()[:400])
    table = tmp_path / "list.csv"
    table.write_text(
        "video,label,start,end,subset\ngood,Run,,,training\nbroken,Run,,,training\n"
        "gone,Jump,,,training\ngood,Jump,5,6,training\n"
    )
    data = data_of(table, tmp_path / "v")
    with pytest.raises(ValueError) as caught:
        loaded(data)
    text = str(caught.value)
    assert "3 of 4 clips of 'training' cannot be used" in text and "bad_videos skip" in text
    with pytest.raises(ValueError, match="3 of 4 clips of 'training' cannot be used"):
        loaded(data, "training", "training")
    for part in ("broken.mp4: ", "line 4: gone: no such file", "line 5: begins at 5 s"):
        assert part in text
    skipping = data_of(table, tmp_path / "v", bad_videos="skip")
    (kept,) = loaded(skipping)
    assert [e.name for e in kept] == ["good"]
    assert kept.skipped.keys() == {"broken", "gone", "good, 5-6 s"}
    blocking = data_of(table, tmp_path / "v", blocked=("broken", "gone", "good"))
    assert loaded(blocking)[0] == []
    with pytest.raises(ValueError, match=r"no clip is in subset 'train'.*did you mean 'training'"):
        loaded(data, "train")
    with pytest.raises(ValueError, match="no folder"):
        loaded(data_of(table, tmp_path / "absent"))


def test_names_that_two_files_share_are_refused(tmp_path: Path, video: Path) -> None:
    put(tmp_path / "v", video, "x/a.mp4", "y/a.mp4")
    table = tmp_path / "list.csv"
    table.write_text("video,label,subset\na,Run,training\n")
    with pytest.raises(ValueError, match="share the name a"):
        loaded(data_of(table, tmp_path / "v"))
    table.write_text("video,label,subset\ny/a,Run,training\n")
    assert loaded(data_of(table, tmp_path / "v"))[0][0].item.path.parent.name == "y"


def test_pairs_of_labels() -> None:
    sets = (LabelSet("", ("a", "b", "c", "d")),)
    assert label_swaps([("a", 2), ("d", "d")], sets, "x") == {0: 2, 2: 0, 3: 3}
    for pairs, message in (
        ([("a", "e")], "no class 'e'"),
        ([(0, 4)], "class 4, but there are 4"),
        ([("a", "b"), ("b", "c")], "'b' is in two pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            label_swaps(pairs, sets, "data.mirrored")


def test_an_unlabelled_file_is_an_example(video: Path) -> None:
    example = probe_example(video)
    assert example.labels == () and example.stretch == (0, 50, 25.0)


def test_nothing_to_learn_from_is_an_error(tmp_path: Path, video: Path) -> None:
    from configs.loader import load
    from tests.conftest import REPOSITORY
    from train.recognition.config import Recognition

    config = load(Recognition, REPOSITORY / "configs/recognition/demo.yaml")
    with pytest.raises(ValueError, match="no clip of subset 'training' has a label"):
        TrainingViews([probe_example(video)], config, (LabelSet("", ("a",)),))


# ------------------------------------------------------------------ fuzz

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(
        st.sampled_from(["video", "label", "start", "end", "subset", "split", "x"]), max_size=7
    ),
    rows=st.lists(st.lists(CELLS, max_size=7), max_size=5),
)
def test_any_table_is_read_or_refused(
    tmp_path: Path, header: list[str], rows: list[list[str]]
) -> None:
    import csv

    path = tmp_path / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    try:
        found = read_clip_list(path)
    except ValueError as error:
        assert str(error)
    else:
        known = set(found.sets[0].classes)
        for clip in found.clips:
            assert clip.subset and all(clip.video) and set(clip.labels) <= known
            assert clip.span_s is None or 0 <= clip.span_s[0] < clip.span_s[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | CELLS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "template", "label", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=[{"id": "", "template": ""}])
@given(content=JSON)
def test_any_json_is_read_or_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    try:
        found = read_clip_list(path)
    except ValueError as error:
        assert str(error)
    else:
        assert all(clip.video[0].strip() for clip in found.clips)
