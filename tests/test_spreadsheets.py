"""Tables as spreadsheets write them, and JSON that says things twice: one meaning, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.annotations import Annotations, Detection, Segment, read_annotations
from evaluate.datasets.fields import read_json
from evaluate.files.predictions import read_predictions
from tests.conftest import REPOSITORY

CASES = REPOSITORY.parent / "shared/cases/annotations"
HEADER = "video,start,end,label,subset\n"
ROW = {"v": [Segment("A", 1.0, 2.0)]}
DECIMAL = {"v": [Segment("A", 1.5, 2.5)]}


def found(annotations: Annotations) -> dict[str, list[Segment]]:
    return {name: list(video.segments) for name, video in annotations.videos.items()}


def read(folder: Path, text: str | bytes, name: str = "own.csv") -> Annotations:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_annotations(file)


# ------------------------------------------------------------------ what people sent


@pytest.fixture
def case(shared: Path) -> Callable[[str], Path]:
    """Return a file that a user had; the test is skipped where it is absent."""

    def path(name: str) -> Path:
        if not (CASES / name).is_file():
            pytest.skip(f"{name} (../shared/cases) is not here")
        return CASES / name

    return path


@pytest.mark.parametrize(
    ("name", "segments", "noted"),
    [
        ("c_comment.csv", ROW, None),
        ("c_excel_sep.csv", ROW, None),
        ("c_dec.csv", DECIMAL, ("decimal comma", 2)),
        ("c_semi_dec.csv", DECIMAL, ("decimal comma", 2)),
        ("c_ext.csv", ROW, ("without the ending", 1)),
        ("neg_tiny.json", {"v1": [Segment("A", 0.0, 2.0)], "v2": []}, None),
        ("label_space.json", None, ("differ in case, blanks", 4)),
        ("unicode_nfc.json", None, ("differ in case, blanks", 2)),
    ],
)
def test_what_has_one_meaning_is_read(
    case: Callable[[str], Path],
    name: str,
    segments: dict[str, list[Segment]] | None,
    noted: tuple[str, int] | None,
) -> None:
    annotations = read_annotations(case(name))
    assert segments is None or found(annotations) == segments
    if noted is None:
        assert not annotations.warnings
    else:
        ((phrase, count),) = annotations.warnings.items()
        assert noted[0] in phrase and count == noted[1]


def test_what_has_none_is_refused(case: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"line 2: column 'start': in '1:75'.*below 60") as told:
        read_annotations(case("c_hms_bad.csv"))
    assert "line 2: column 'end': in '2:99'" in str(told.value)
    with pytest.raises(ValueError, match=r"line 1, column 101: 'v1' stands twice, .*column 14;"):
        read_annotations(case("dupkey.json"))
    with pytest.raises(ValueError, match=r"line 1, column 62: 'v1' stands twice, .*column 13;"):
        read_predictions(case("predictions_dupkey.json"))
    truth = read_annotations(case("predictions_truth.json"))
    assert list(truth.videos) == ["v1", "v2", "v3", "v4"]


# ------------------------------------------------------------------ dialects of tables


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("first", ["", "sep={d}\n", '"sep={d}"\n', "\n# a note; or, two\t#\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_every_dialect_says_the_same(
    tmp_path: Path, delimiter: str, first: str, line_end: str, encoding: str
) -> None:
    rows = [
        *(["video", "start", "end", "label", "subset"], ["é", "1.25", "1:02.5", '"a, b; c"', "x"]),
        *(["é", '"0:00:03,5"', "4", "d", "x"], ["w", "", "", "", "y"]),
    ]
    text = first.format(d=delimiter) + "".join(delimiter.join(row) + "\n" for row in rows)
    content = text.replace("\n", line_end).encode(encoding)
    if encoding == "utf-16-be":
        content = b"\xfe\xff" + content
    annotations = read(tmp_path, content)
    assert found(annotations) == {
        "é": [Segment("a, b; c", 1.25, 62.5), Segment("d", 3.5, 4.0)],
        "w": [],
    }
    assert annotations.warnings == {"times with a decimal comma read as numbers": 1}


def test_unicode_text_of_a_spreadsheet_is_a_table(tmp_path: Path) -> None:
    table = (HEADER + "é,1,2,A,training\n").replace(",", "\t").replace("\n", "\r\n")
    assert found(read(tmp_path, table.encode("utf-16"), "own.txt")) == {"é": ROW["v"]}
    (tmp_path / "README.txt").write_text("a,b,a\nnotes\n")
    (tmp_path / "class_list.txt").write_text("1 A\n")
    assert found(read_annotations(tmp_path)) == {"é": ROW["v"]}


@pytest.mark.parametrize("name", ["own.csv", "own.txt", "own", "own.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}vé,1,2,A,training\n".encode("cp1252"), r"UTF-8 text \(line 2: byte 0xe9\)"),
        (f"{HEADER}v,1,2,A,training\n".encode("utf-16-le"), r"UTF-8 text \(line 1: byte 0x00\)"),
        (f"{HEADER}v,1,2,A,training\n".encode("utf-32"), r"UTF-8 text \(line 1: byte 0x00\)"),
        (b"PK\x03\x04" + bytes(50), "workbook or another packed file.*'CSV UTF-8'"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*{message}") as told:
        read(tmp_path, content, name)
    assert "\0" not in str(told.value)


@pytest.mark.parametrize("label", ["", " ", "\u2003"])
def test_a_label_is_not_empty(tmp_path: Path, label: str) -> None:
    entries = [{"segment": [1, 2], "label": label}, {"segment": [1, 2], "label": "A"}]
    content = {"database": {"v": {"subset": "t", "annotations": entries}}}
    with pytest.raises(ValueError, match="video 'v', entry 0: 'label' is empty"):
        read(tmp_path, json.dumps(content), "own.json")


def test_marks_that_are_not_seen_make_labels_alike(tmp_path: Path) -> None:
    annotations = read(tmp_path, HEADER + "v,1,2,A\u200b,training\nv,3,4,A,training\n")
    assert sum(annotations.warnings.values()) == 2


def test_joined_files_are_one_table(tmp_path: Path) -> None:
    part = b"\xef\xbb\xbf" + HEADER.encode() + b"%s,1,2,A,training\n"
    annotations = read(tmp_path, part % b"a" + b"# the second\n" + part % b"b")
    assert list(annotations.videos) == ["a", "b"]
    assert annotations.warnings == {
        "repeated header lines left out": 1,
        "lines that begin with # left out": 1,
    }


@pytest.mark.parametrize("title", ["My labels", "My labels{d}{d}{d}{d}", "{d}{d}{d}", "a{d}1\n\nb"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_title_may_stand_above_the_header(tmp_path: Path, title: str, delimiter: str) -> None:
    text = (title.format(d=",") + "\n\nfile,begin,end,class,subset\nv,1,2,A,training\n").replace(
        ",", delimiter
    )
    assert found(read(tmp_path, text)) == ROW
    with pytest.raises(ValueError, match=r"own.csv: line \d: column 'end'.*not 'x'"):
        read(tmp_path, text.replace("2", "x"))


def test_a_header_may_be_a_comment(tmp_path: Path) -> None:
    annotations = read(tmp_path, "# mine\n# video;t-start;t-end;class;split\nv;1;2;A;training\n")
    assert found(annotations) == ROW


def test_quotes_that_are_not_closed_cost_their_own_row(tmp_path: Path) -> None:
    """Not the rows after it, which would be part of a label; blanks after a quote do no harm."""
    rows = ['v,1,2,"A" ,training', 'v,3,4,"B,training', "v,5,x,C,training", 'v,7,8,"D",training']
    with pytest.raises(ValueError, match="2 problems") as told:
        read(tmp_path, HEADER + "\n".join(rows))
    assert "own.csv: line 3: a double quote" in str(told.value)
    assert "own.csv: line 4: column 'end'" in str(told.value)
    found_labels = [s.label for s in found(read(tmp_path, HEADER + rows[0] + "\n" + rows[3]))["v"]]
    assert found_labels == ["A", "D"]


def test_quoted_cells_may_begin_like_a_comment(tmp_path: Path) -> None:
    annotations = read(tmp_path, HEADER + '"#1",1,2,"two\n# lines",training\n')
    assert found(annotations) == {"#1": [Segment("two\n# lines", 1.0, 2.0)]}
    assert not annotations.warnings


@pytest.mark.parametrize("video", ["video", "Filename", "file", "video_id", "Video Name", "File"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        *(("start_time", "end_time"), ("t-start", "t-end"), ("t_start", "t_end")),
        *(("begin", "end"), ("Start (s)", "Stop (s)"), ("StartTime", "stop"), ("start", "end")),
    ],
)
@pytest.mark.parametrize(("label", "subset"), [("class", "split"), ("Action", "Set")])
def test_other_names_of_columns(
    tmp_path: Path, video: str, start: str, end: str, label: str, subset: str
) -> None:
    header = [video, start, end, label, subset]
    annotations = read(tmp_path, ",".join([*header, "notes"]) + "\nv,1,2,A,training,fine\n")
    assert found(annotations) == ROW and annotations.videos["v"].subset == "training"
    plain = {"video", "start", "end", "label", "subset"}
    other = [name.lower() for name in header if name.lower() not in plain]
    assert len(annotations.warnings) == len(other)
    assert all(any(repr(name) in phrase for phrase in annotations.warnings) for name in other)


def test_a_plain_name_goes_before_others(tmp_path: Path) -> None:
    text = "video,filename,start,start_time,end,label,class\nv,w.mp4,1,7,2,A,B\n"
    assert found(read(tmp_path, text)) == ROW


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("filename,video_id,start,end,label", "line 1: columns 'filename' and 'video_id' may both"),
        ("video,start_time,begin,end,label", "line 1: columns 'begin' and 'start_time' may both"),
        ("video,start,duration,label", "column end is missing.*'duration' may be the video's or"),
        ("video,start_ms,end_ms,label", "column end, start is missing"),
        ("video,start,end,lable", r"column label is missing; is it 'lable'\?"),
        ("video,start_frame,end_frame,label", "column end, start is missing"),
    ],
)
def test_columns_without_one_meaning(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, header + "\nv,1,2,3,4\n")


@pytest.mark.parametrize(
    ("delimiter", "times", "seconds"),
    [
        (",", ['"1,5"', '"12,345"'], [1.5, 12.345]),
        (",", ["1.5", '"2,5"'], [1.5, 2.5]),
        (",", ["1.234", "2.345"], [1.234, 2.345]),
        (",", ['"0,500"', '"1,234"'], [0.5, 1.234]),
        (",", ['"1.234,5"', '"1.235,5"'], [1234.5, 1235.5]),
        (",", ['"1,234.5"', '"1,235.5"'], [1234.5, 1235.5]),
        (";", ["1,234", "2,345"], [1.234, 2.345]),
        (";", ["1.234", "2.345"], [1.234, 2.345]),
        (";", ["0:01,5", "00:00:02,25"], [1.5, 2.25]),
        ("\t", ["1,5", "2,25"], [1.5, 2.25]),
        (",", ["0:00:01.500", "1:00:00"], [1.5, 3600.0]),
        (",", ["75:10", "25:00:00"], [4510.0, 90000.0]),
        (",", ["-1e-9", "2"], [0.0, 2.0]),
        (",", ["-1e-6", "2"], [0.0, 2.0]),
    ],
)
def test_times(tmp_path: Path, delimiter: str, times: list[str], seconds: list[float]) -> None:
    rows = [["video", "start", "end", "label", "subset"], ["v", *times, "A", "training"]]
    annotations = read(tmp_path, "".join(delimiter.join(row) + "\n" for row in rows))
    assert found(annotations) == {"v": [Segment("A", *seconds)]}


@pytest.mark.parametrize(
    ("delimiter", "times", "column", "message"),
    [
        (",", ['"1,234"', '"2,345"'], "start", "'1,234' may be 1.234 or 1234"),
        ("\t", ["1,234", "2,345"], "start", "'1,234' may be 1.234 or 1234"),
        (";", ["1,234", "2.345"], "start", "'1,234' may be"),
        (",", ['"1,5"', "2.345"], "end", "'2.345' may be 2.345 or 2345"),
        (",", ["1:75", "99"], "start", "below 60"),
        (",", ["1", "1:60:00"], "end", "below 60"),
        (",", ["1:2:3:4", "99"], "start", "'1:2:3:4' is not a time"),
        (",", ["1:00 PM", "99"], "start", "'1:00 PM' is not a time"),
        (",", ["1", "2 s"], "end", "finite number, not '2 s'"),
        (",", ["-0:01", "2"], "start", "'-0:01' is not a time"),
        (",", ["nan", "2"], "start", "finite number, not 'nan'"),
        (",", ["1", "inf"], "end", "finite number, not 'inf'"),
    ],
)
def test_times_without_one_meaning(
    tmp_path: Path, delimiter: str, times: list[str], column: str, message: str
) -> None:
    rows = [["video", "start", "end", "label"], ["v", *times, "A"]]
    with pytest.raises(ValueError, match=f"own.csv: line 2: column '{column}'.*{message}"):
        read(tmp_path, "".join(delimiter.join(row) + "\n" for row in rows))


def test_a_line_is_no_part_of_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: segment must be a finite number, not '1_0'"):
        read(tmp_path, HEADER + "v,1_0,20,A,training\n")


def test_little_below_zero_is_zero_and_more_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: the segment starts at -2e-06 s"):
        read(tmp_path, HEADER + "v,-2e-6,1,A,training\n")


def test_files_of_videos_are_their_names(tmp_path: Path) -> None:
    given = "a.MP4", "a", "videos/b.mts", "C:\\x\\c.webm", "v.1.5"
    rows = (f"{name},{i},{i + 1},A,t\n" for i, name in enumerate(given))
    annotations = read(tmp_path, HEADER + "".join(rows))
    assert list(annotations.videos) == ["a", "b", "c", "v.1.5"]
    assert len(annotations.videos["a"].segments) == 2
    assert annotations.warnings == {"videos given by their files, read without the ending": 3}
    for other in ("a.avi", "x/a.mp4"):
        with pytest.raises(ValueError, match=f"line 3: '{other}' and 'a.mp4' are different"):
            read(tmp_path, HEADER + f"a.mp4,1,2,A,t\n{other},1,2,A,t\n")


def test_spellings_of_subsets_are_one(tmp_path: Path) -> None:
    subsets = ["training", "Training", " TRAINING", "Test", "TEST", "Test", "my set", "train"]
    rows = "".join(f"v{i},1,2,A,{subset}\n" for i, subset in enumerate(subsets))
    annotations = read(tmp_path, HEADER + rows)
    read_back = [video.subset for video in annotations.videos.values()]
    assert read_back == [*["training"] * 3, *["Test"] * 3, "my set", "training"]
    assert sorted(annotations.warnings.values()) == [1, 3]
    same = read(tmp_path, HEADER + "v,1,2,A,Training\nv,3,4,A,training\n")
    assert same.videos["v"].subset == "training" and len(same.videos["v"].segments) == 2
    alone = read(tmp_path, HEADER + "v,1,2,A,Training\n")  # consistent: the user's word
    assert alone.videos["v"].subset == "Training" and not alone.warnings


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    rows = ["v,1,x,A,t", ",1,2,A,t", "v,5,2,A,t", "v,1:75,2,A,t", "v,1,2,A,t,more", "v,1,2,,t"]
    text = HEADER + "\n".join([*rows, "w,,,,u"])
    with pytest.raises(ValueError, match="6 problems") as told:
        read(tmp_path, text)
    lines = [f"own.csv: line {line}:" for line in range(2, 8)]
    assert all(line in str(told.value) for line in lines) and "line 8" not in str(told.value)
    many = HEADER + "v,1,x,A,t\n" * 50
    with pytest.raises(ValueError, match=r"50 problems[^…]*… and 30 more"):
        read(tmp_path, many)


def test_another_delimiter_in_a_row_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="line 3: a comma between the cells, but in the header a s"
    ):
        read(tmp_path, "video;start;end;label\nv;1;2;A\nv,1,2,A\n")
    with pytest.raises(ValueError, match=r"line 2: 6 cells, but 4 columns.*a comma in it"):
        read(tmp_path, "video,start,end,label\nv,1,5,2,5,A\n")


# ------------------------------------------------------------------ JSON


def test_all_repeated_keys_are_told_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "gt.json"
    file.write_text(
        '{"database": {\n  "a": {"subset": "x", "x": ["\\"{", {"b": 1}]},\n  "b": {"subset": 1},\n'
        '  "a": {"subset": "y", "subset": "z"},\n  "a": 3}}'
    )
    with pytest.raises(ValueError, match="3 problems") as told:
        read_annotations(file)
    text = str(told.value)
    assert "line 4, column 3: 'a' stands twice, first in line 2, column 3" in text
    assert "line 4, column 24: 'subset' stands twice, first in line 4, column 9" in text
    assert "line 5, column 3: 'a' stands twice, first in line 2, column 3" in text


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None, max_examples=40)
@given(content=JSON)
def test_other_json_is_read_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    file = tmp_path_factory.mktemp("json") / "x.json"
    for ascii_only in (True, False):
        text = json.dumps(content, ensure_ascii=ascii_only)
        try:
            file.write_text(text, encoding="utf-8")
        except UnicodeEncodeError:
            continue  # half a character
        assert read_json(file) == content


@settings(deadline=None, max_examples=40)
@given(content=st.dictionaries(st.text(), JSON, min_size=1), data=st.data())
def test_any_repeated_key_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object], data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("json") / "x.json"
    key = data.draw(st.sampled_from(sorted(content)))
    pairs = [*content.items(), (key, 1)]
    inside = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs)
    file.write_text(f'[1, {{"x": {{{inside}}}}}]')
    with pytest.raises(ValueError, match=r"x\.json: line 1, column \d+: .* stands twice"):
        read_json(file)


def test_all_problems_of_predictions_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    good = {"segment": [0, 1], "label": "a", "score": 1}
    file.write_text(json.dumps({"results": {"v": [good, {"label": "a"}, 3], "w": 4, "x": [good]}}))
    with pytest.raises(ValueError, match="3 problems") as told:
        read_predictions(file)
    for place in ("'v', entry 1", "'v', entry 2", "'w': expected a list"):
        assert place in str(told.value)
    file.write_text(json.dumps({"results": {"v": [good]}}))
    assert read_predictions(file) == {"v": [Detection("a", 0.0, 1.0, 1.0)]}
