"""A wheel holds every room and template, and what it installs runs anywhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_imports import STAGES, modules


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel, built in a copy: a build folder in the checkout could add old files."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for stage in STAGES:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / stage, copy / stage, ignore=skipped)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_a_wheel_holds_every_room_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(file.relative_to(REPOSITORY)) for file in modules().values()}
    templates = {
        str(file.relative_to(REPOSITORY))
        for file in (REPOSITORY / "evaluate/templates").iterdir()
        if file.is_file()
    }
    assert code | templates <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(STAGES)


def test_what_is_installed_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:  # a wheel of plain Python is installed by unpacking
        content.extractall(site)
    code = (
        "import runpy, sys; sys.argv = ['show.py', 'absent']; import evaluate.reports.page as page;"
        "assert page.__file__.startswith(sys.path[0]), page.__file__;"
        "runpy.run_path(sys.path[0] + '/cache/show.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: absent"), done.stderr
