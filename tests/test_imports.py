"""Who may import whom: stages, rooms and files one way, scripts by nobody."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree

import pytest

import evaluate
from tests.conftest import REPOSITORY

# What stands before others may be imported by them. A file of a stage's own folder is a room here.
STAGES = {
    "configs": [],
    "cache": ["configs"],
    "extract": ["configs", "cache"],
    "evaluate": ["configs"],
    # Training validates itself: it may use the library modules of evaluate.
    "train": ["configs", "cache", "extract", "evaluate"],
}
ROOMS = {
    "configs": [
        "messages",
        "progress",
        "cli",
        "system",
        "atomic",
        "reference",
        "loader",
        "options",
        "command",
    ],
    "cache": [
        *("errors", "dtypes", "address", "code_digest", "fingerprint"),
        *("storage", "format", "store", "upkeep"),
    ],
    "extract": [
        *(
            "settings",
            "identity",
            "video",
            "augmentation",
            "sampling",
            "parallel",
            "transcoding",
            "checkpoints",
            "layers",
            "tada",
            "backbone",
            "activations",
        ),
        *("conversion", "feature_files", "feature_folder", "scenes"),
    ],
    "evaluate": [
        *("datasets", "annotations", "suppression", "nms", "mean_ap"),
        *("metrics", "diagnosis", "rendering", "files", "reports", "options"),
    ],
    "train": [
        *("errors", "modeling", "config", "data"),
        *(
            "device",
            "tracking",
            "engine",
            "published",
            "dataset_check",
            "postprocessing",
            "detector",
            "cache_entries",
            "recognition",
            "ablation",
            "cost",
            "pretraining",
            "export",
        ),
    ],
}
MOST_FILES = 12
# Imports that a function makes when it is called: they would cost every start seconds.
AT_CALL = {("evaluate.nms", "evaluate.suppression")}


def modules() -> dict[str, Path]:
    files = [file for stage in STAGES for file in (REPOSITORY / stage).rglob("*.py")]
    return {".".join(f.relative_to(REPOSITORY).with_suffix("").parts): f for f in files}


def is_script(file: Path) -> bool:
    return '__name__ == "__main__"' in file.read_text()


def imports(code: ast.AST, names: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the modules among `names` that code imports, and whether inside a function."""
    inside = {
        id(node)
        for function in ast.walk(code)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(code):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in names else node.module for name in whole]
        for name in found:
            for module in (name, f"{name}.__init__"):
                if module in names:
                    yield module, id(node) in inside


def room(module: str) -> tuple[str, str]:
    """Return a module's stage and its room in it: `train.data.batch` is in (train, data)."""
    stage, _, rest = module.partition(".")
    return stage, rest.split(".")[0]


def violations(importer: str, script: bool, imported: str, scripts: set[str]) -> Iterator[str]:
    """Yield what is wrong with one module's import of another."""
    if imported in scripts:
        yield f"{importer} imports the script {imported}"
    if script:
        return
    (stage, here), (other, there) = room(importer), room(imported)
    if stage != other:
        if other not in STAGES[stage]:
            yield f"{importer} imports {imported}, of a stage to its right"
    elif "__init__" in (here, there):
        return
    elif here != there:
        order = ROOMS[stage]
        missing = {here, there} - set(order)
        if missing:
            yield f"{importer} imports {imported}: {missing} stand in no order of {stage}"
        elif order.index(here) < order.index(there):
            yield f"{importer} imports {imported}, of a room to its right"
    elif imported.endswith(".__init__"):
        yield f"{importer} imports its own room; import from the file"


@pytest.fixture(scope="module")
def arrows() -> list[tuple[str, str, bool]]:
    """Return (importer, imported, whether in a function) for all of the code."""
    files = modules()
    return [
        (name, imported, hidden)
        for name, file in files.items()
        for imported, hidden in imports(ast.parse(file.read_text()), set(files))
    ]


def test_the_picture_has_every_room_and_script() -> None:
    picture = ElementTree.parse(REPOSITORY / "docs/rooms.svg")
    drawn = {word for text in picture.iter() for word in (text.text or "").split()}
    for stage, rooms in ROOMS.items():
        folder = REPOSITORY / stage
        scripts = {file.name for file in folder.glob("*.py") if is_script(file)}
        names = {f"{room}/" if (folder / room).is_dir() else room for room in rooms}
        assert {f"{stage}/", *names, *scripts} <= drawn, stage


def test_imports_go_one_way(arrows: list[tuple[str, str, bool]]) -> None:
    scripts = {name for name, file in modules().items() if is_script(file)}
    wrong = [
        line
        for importer, imported, _ in arrows
        for line in violations(importer, importer in scripts, imported, scripts)
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_only_scripts_import_in_functions(arrows: list[tuple[str, str, bool]]) -> None:
    """Scripts do: what is slow to import comes after the command line is read."""
    scripts = {name for name, file in modules().items() if is_script(file)}
    hidden = {(importer, imported) for importer, imported, at_call in arrows if at_call}
    assert {arrow for arrow in hidden if arrow[0] not in scripts} == AT_CALL


def test_no_circle_of_files(arrows: list[tuple[str, str, bool]]) -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported, _ in arrows:
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_command_lines_end_at_main() -> None:
    """Functions take what they use, so that others can call them and mypy reads their types."""
    passed_on = [
        f"{name}.{function.name}"
        for name, file in modules().items()
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name != "main"
        for argument in ast.walk(function.args)
        if isinstance(argument, ast.arg) and argument.annotation is not None
        if "Namespace" in ast.unparse(argument.annotation)
    ]
    assert not passed_on


def test_rooms_are_small() -> None:
    folders = {file.parent for file in modules().values()}
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert max(sizes.values()) <= MOST_FILES, sizes


def test_the_rules_catch_offenders() -> None:
    scripts = {"train.e2e"}

    def wrong(importer: str, imported: str) -> list[str]:
        return list(violations(importer, False, imported, scripts))

    assert wrong("extract.video.reader", "train.engine.loop")
    assert wrong("extract.video.reader", "extract.backbone.backbone")
    assert wrong("evaluate.nms", "train.engine.loop")
    assert wrong("train.engine.loop", "train.e2e")
    assert wrong("train.engine.loop", "train.unheard_of")
    assert wrong("extract.video.reader", "extract.video.__init__")
    assert not wrong("train.detector.model", "train.modeling.fusion")
    assert not list(violations("evaluate.run", True, "train.engine.loop", scripts))


def test_imports_in_functions_are_found() -> None:
    code = ast.parse("import train.a\ndef f():\n    from train import b\n    from train.c import d")
    names = {"train.a", "train.b", "train.c"}
    assert set(imports(code, names)) == {("train.a", False), ("train.b", True), ("train.c", True)}


def test_documented_names_are_where_they_are_documented() -> None:
    code = (
        "from extract.video import VideoReader, VideoError\n"
        "from extract.backbone import Backbone, BackboneConfig, Cut\n"
        "from extract.activations import Activations, CacheConfig, Cached, Counts\n"
        "from extract.tada import TAdaConv, calibrate_convs\n"
        "from train.detector import Detector\n"
        "from cache.store import Store\n"
        "from evaluate.mean_ap import mean_average_precision"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_our_evaluate_is_imported() -> None:
    """A package of the same name exists in the registry."""
    assert evaluate.__file__ is not None
    assert Path(evaluate.__file__).parent == REPOSITORY / "evaluate"


def test_no_module_hides_the_standard_library() -> None:
    """`python extract/run.py` puts extract/ first on the path: `import random` must stay safe."""
    names = {part for name in modules() for part in name.split(".")[1:]} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
    assert not {room(name)[1] for name in modules()} & set(STAGES)
