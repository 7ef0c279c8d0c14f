"""The one-way rule: a stage imports what stands to its left; nobody imports a script."""

import ast
from pathlib import Path

import evaluate
from tests.conftest import REPOSITORY

PACKAGES = ("configs", "cache", "extract", "train", "evaluate")
ALLOWED = {
    "configs": set[str](),
    "cache": {"configs"},
    "extract": {"configs", "cache"},
    # Training validates itself: it may use the library modules of evaluate.
    "train": {"configs", "cache", "extract", "evaluate"},
    "evaluate": set[str](),
}


def modules() -> dict[str, Path]:
    files = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    return {".".join(f.relative_to(REPOSITORY).with_suffix("").parts): f for f in files}


def is_script(file: Path) -> bool:
    return '__name__ == "__main__"' in file.read_text()


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def violations(importer: str, script: bool, imported: set[str], scripts: set[str]) -> list[str]:
    stage = importer.split(".")[0]
    wrong = [f"{importer} imports the script {name}" for name in imported & scripts]
    if not script:
        allowed = ALLOWED[stage] | {stage}
        wrong += [
            f"{importer} imports {name}, which stands to its right"
            for name in imported
            if name.split(".")[0] not in allowed
        ]
    return wrong


def test_imports_go_one_way() -> None:
    files = modules()
    scripts = {name for name, file in files.items() if is_script(file)}
    wrong = [
        line
        for name, file in files.items()
        for line in violations(name, name in scripts, imports(file), scripts)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_catches_offenders() -> None:
    scripts = {"train.e2e"}
    assert violations("extract.video.reader", False, {"train.engine.loop"}, scripts)
    assert violations("evaluate.nms", False, {"train.engine.loop"}, scripts)
    assert violations("train.engine.loop", False, {"train.e2e"}, scripts)
    assert not violations("evaluate.run", True, {"train.engine.loop"}, scripts)


def test_our_evaluate_is_imported() -> None:
    """A package of the same name exists in the registry."""
    assert evaluate.__file__ is not None
    assert Path(evaluate.__file__).parent == REPOSITORY / "evaluate"


def test_no_module_hides_the_standard_library() -> None:
    """`python extract/run.py` puts extract/ first on the path: `import random` must stay safe."""
    import sys

    names = {file.stem for file in modules().values()} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & set(PACKAGES)
