"""The files around the code agree with it: workflows, Dockerfile, constraints, citation."""

import re
import tomllib
from importlib import metadata
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def load_yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def commands(workflow: dict[str, Any]) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_workflows_run_what_make_knows() -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE))
    run = [c for path in WORKFLOWS for c in commands(yaml.safe_load(path.read_text()))]
    assert {"make lint", "make test", "make docs"} <= set(run)
    for command in run:
        words = command.split()
        assert words[0] == "make" and words[1] in targets, command
        for name in (word.split("=")[0] for word in words[2:]):
            assert re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE), command


def test_workflows_test_the_ends_of_what_is_supported() -> None:
    versions = load_yaml(".github/workflows/checks.yml")["jobs"]["test"]["strategy"]["matrix"]
    supported = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    ]
    ends = [min(supported, key=Version), max(supported, key=Version)]
    assert versions["python"] == ends
    assert PROJECT["requires-python"] == f">={ends[0]}"


def test_constraints_are_within_the_bounds() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    extras = PROJECT["optional-dependencies"]
    parts = [part for name, part in extras.items() if name != "dev"]  # tools change no number
    for text in [*PROJECT["dependencies"], *(text for part in parts for text in part)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_citation_names_this_version_and_every_work() -> None:
    citation = load_yaml("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    text = (REPOSITORY / "README.md").read_text()
    for work in citation["references"]:
        assert work["title"] in re.sub(r"[{}]", "", re.sub(r"\s+", " ", text)), work["title"]


def test_dockerfile_copies_what_is_here() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied and all((REPOSITORY / name).exists() for name in copied)
    assert any("--shm-size" in line for line in lines)


def test_hooks_run_what_the_project_installs() -> None:
    hooks = load_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]
    developers = {Requirement(r).name for r in PROJECT["optional-dependencies"]["dev"]}
    for hook in hooks:
        tool = hook["entry"].split()[0].rpartition("/")[2]
        assert tool in developers and metadata.version(tool)
