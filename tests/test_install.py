"""What `pip install` puts into an environment, beside packages whose names are ours, too."""

import ast
import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

STAGES = ["cache", "configs", "evaluate", "extract", "train"]
# A wheel's modules must not need the names of a checkout, which are there while tests run.
ALONE = f"import sys; sys.modules.update(dict.fromkeys({STAGES}))\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # builds leave files there
    for stage in STAGES:
        shutil.copytree(REPOSITORY / stage, source / stage)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    # What pip calls; environments need not have pip.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=source, check=True, timeout=200, stdout=subprocess.DEVNULL)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has the wheel's, and others with the names of our folders."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    for name in (*STAGES, "datasets"):
        (folder / f"{name}.py").write_text("SOMEBODY_ELSE = True\n")
    return folder


def run(code: str, site: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_owns_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"palindrome-{version('palindrome')}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"palindrome", info}
    top_level = zipfile.ZipFile(wheel).read(f"{info}/top_level.txt").decode().split()
    assert top_level == ["palindrome"]
    assert not [name for name in names if "test" in name]


def test_a_wheel_has_every_file_of_the_stages(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *STAGES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    kept = {name for name in listed.stdout.split() if (REPOSITORY / name).is_file()}
    packed = {name.removeprefix("palindrome/") for name in zipfile.ZipFile(wheel).namelist()}
    assert kept <= packed, sorted(kept - packed)


@pytest.mark.slow
def test_every_module_of_a_wheel_is_imported_without_the_names_of_a_checkout(
    installed: Path, tmp_path: Path
) -> None:
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((installed / "palindrome").rglob("*.py"))
    ]
    assert len(modules) > 150
    code = f"{ALONE}import importlib\nfor name in {modules}: importlib.import_module(name)"
    run(code, installed, tmp_path)


def test_the_installed_command_runs_scripts(wheel: Path, installed: Path, tmp_path: Path) -> None:
    info = f"palindrome-{version('palindrome')}.dist-info"
    points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "palindrome = palindrome.configs.command:run_command" in points
    call = "from palindrome.configs.command import run_command; run_command()"
    told = run(
        f"{ALONE}sys.argv = ['palindrome', 'evaluate', '--help']; {call}", installed, tmp_path
    )
    assert told.startswith("usage: palindrome evaluate ")
    told = run(f"{ALONE}sys.argv = ['palindrome']; {call}", installed, tmp_path)
    assert "  train " in told and "accelerate launch -m palindrome.train.e2e" in told


def test_a_wheel_leaves_the_names_of_others_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("SOMEBODY_ELSE = True\n")
    code = f"""
import {", ".join((*STAGES, "datasets"))}
assert all(part.SOMEBODY_ELSE for part in ({", ".join((*STAGES, "datasets"))}))
from palindrome.train.detector import Detector
from palindrome.evaluate.mean_ap import mean_average_precision
assert Detector.__module__ == "palindrome.train.detector.model"
"""
    run(code, installed, tmp_path)


def test_an_installed_config_is_found_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = """
from palindrome.configs.loader import load
from palindrome.train.config import Experiment
config = load(Experiment, "configs/e2e/demo/forward.yaml")
assert config.out == "runs/demo/forward"
from palindrome.train.ablation.grid import read_grid
from pathlib import Path
read_grid(Path("configs/ablate/study.yaml"))
"""
    run(code, installed, tmp_path)


@pytest.mark.slow
def test_code_has_the_same_digest_wherever_it_is_installed(installed: Path, tmp_path: Path) -> None:
    code = """
import json
from {0}cache.code_digest import code_digest
from {0}extract.activations.passes import Pass
from {0}extract.backbone.backbone import Backbone
from {0}extract.identity.computing import COMPUTES_NOTHING
from {0}extract.video.reader import VideoReader
found = code_digest([Pass, Backbone, VideoReader], COMPUTES_NOTHING)
print(json.dumps([found.whole, found.modules, sorted(found.libraries)]))
"""
    ours = run(code.format(""), REPOSITORY, tmp_path)
    theirs = run(ALONE + code.format("palindrome."), installed, tmp_path)
    assert json.loads(ours) == json.loads(theirs)


SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for stage in STAGES
    for path in (REPOSITORY / stage).glob("*.py")
    if "\ndef main(" in path.read_text()
)


def before_imports_of_ours(script: str) -> str:
    """Return the statements of a script that come before its first import of ours."""
    tree = ast.parse((REPOSITORY / script).read_text())
    for place, node in enumerate(tree.body):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in STAGES:
            return "\n".join([*map(ast.unparse, tree.body[:place]), ""])
    raise AssertionError(script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_sees_packages_not_its_neighbours(script: str) -> None:
    assert """
if __package__ is None:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
""" in before_imports_of_ours(script)


def test_a_script_runs_in_a_checkout_beside_packages_of_our_names(tmp_path: Path) -> None:
    for stage in STAGES:
        (tmp_path / f"{stage}.py").write_text("raise SystemExit('somebody else')\n")
    (tmp_path / "datasets.py").write_text("SOMEBODY_ELSE = True\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit\n@atexit.register\ndef _():\n    import datasets\n"
        "    print(datasets.SOMEBODY_ELSE)\n"
    )
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "evaluate/run.py"), "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n")


# Hugging Face's own `evaluate` and `datasets` beside ours; they come from a package index.
THEIRS = ("evaluate", "datasets")
THEIRS_WORK = """
import datasets, evaluate
assert datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: {"b": row["a"] + 1})["b"][1] == 3
class Count(evaluate.Metric):
    def _info(self):
        kinds = datasets.Features({"predictions": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", features=kinds)
    def _compute(self, predictions):
        return {"count": len(predictions)}
assert Count().compute(predictions=[1, 2, 3]) == {"count": 3}
"""
OURS_WORKS = """
from palindrome.configs.loader import load
from palindrome.evaluate.nms import NmsConfig
from palindrome.train.config import Experiment
from palindrome.train.detector import Detector
assert load(Experiment, "configs/e2e/demo/forward.yaml").out == "runs/demo/forward"
"""


class Environment:
    """A virtual environment that sees this one's packages after its own.

    Attributes:
        folder: where it is; `work`: an empty folder beside it, to run things in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder.parent / "work"
        self.work.mkdir()
        self.uv("venv", "--quiet", "--python", sys.executable, str(folder))
        (packages,) = (folder / "lib").glob("python3*/site-packages")
        (packages / "behind.pth").write_text("\n".join(site.getsitepackages()))

    def uv(self, *words: str) -> None:
        done = subprocess.run(["uv", *words], env=self.variables(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def variables(self, **more: str) -> dict[str, str]:
        """Return the variables of its processes."""
        path = [self.folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
        own = {"PATH": os.pathsep.join(map(str, path)), "VIRTUAL_ENV": str(self.folder)}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | own | {"HF_HOME": str(self.work / "hf"), "OMP_NUM_THREADS": "1"} | more

    def install(self, *what: str) -> None:
        self.uv("pip", "install", "--quiet", *what)

    def uninstall(self, *what: str) -> None:
        self.uv("pip", "uninstall", "--quiet", *what)

    def run(self, *words: str, **more: str) -> str:
        """Run a program of it in the empty folder; return what it prints."""
        program = str(self.folder / "bin" / words[0])
        done = subprocess.run(
            [program, *words[1:]],
            cwd=self.work,
            env=self.variables(**more),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check(self, theirs: bool, ours: bool) -> None:
        """Fail unless the packages that are installed work."""
        if theirs:
            self.run("python", "-c", THEIRS_WORK)
        if ours:
            self.run("python", "-c", OURS_WORKS)
            assert self.run("palindrome", "--version").startswith("palindrome ")
            assert "usage: palindrome evaluate " in self.run("palindrome", "evaluate", "--help")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    if shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("uv is not installed")
    found = Environment(tmp_path / "environment")
    try:
        found.install("--dry-run", *THEIRS)
    except AssertionError as error:
        pytest.skip(f"there is no package index: {error}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
def test_hugging_face_s_packages_and_ours_break_neither(
    ours_first: bool, environment: Environment, wheel: Path
) -> None:
    ours = ["--no-deps", str(wheel)]
    for what in (ours, THEIRS) if ours_first else (THEIRS, ours):
        environment.install(*what)
    environment.check(theirs=True, ours=True)

    # Somebody's own scripts have our names, too.
    for name in ("train", "extract", "configs"):
        (environment.work / f"{name}.py").write_text("MINE = True\n")
    mine = "import sys; sys.path.insert(0, ''); import train, configs; assert train.MINE"
    environment.run("python", "-c", f"{mine}\n{OURS_WORKS}")
    assert "usage: palindrome train " in environment.run("palindrome", "train", "--help")

    # What one leaves behind is all of the other.
    if ours_first:
        environment.uninstall("palindrome")
        environment.check(theirs=True, ours=False)
    else:
        environment.uninstall(*THEIRS)
        environment.check(theirs=False, ours=True)


@pytest.mark.slow
def test_scripts_of_a_checkout_hide_no_datasets(environment: Environment, tmp_path: Path) -> None:
    environment.install(*THEIRS)
    # When a script ends, it tells where any library that it uses would import `datasets` from.
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit\nfrom importlib.util import find_spec\n"
        "atexit.register(lambda: print(find_spec('datasets').origin))\n"
    )
    for script in ("evaluate/run.py", "extract/check.py", "train/e2e.py"):
        path = str(REPOSITORY / script)
        told = environment.run("python", path, "--help", PYTHONPATH=str(tmp_path))
        assert told.startswith("usage: ")
        found = Path(told.splitlines()[-1])
        assert found.is_relative_to(environment.folder) and found.parent.name == "datasets"
    environment.check(theirs=True, ours=False)
