"""Digests of code: what changes them, and what only looks like a change."""

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision

from cache import code_digest as digests
from cache.code_digest import CodeDigest, code_digest, versions
from tests.conftest import REPOSITORY

PLAIN = """
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 2.0
NAMES = {"a", "b", "c"}


def double(x: Tensor) -> Tensor:
    return x * SCALE


class Sizes:
    depth = 3


@dataclass
class Options:
    width: int = 4
    kinds: list[str] = field(default_factory=lambda: ["gelu"])


class Inner(nn.Module):
    def forward(self, x):
        return x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    @cached_property
    def width(self):
        return Options().width

    @torch.no_grad()
    def forward(self, x):
        if len(x) > Sizes.depth:
            raise ValueError(f"{len(x)} rows are too many")
        names = [name for name in NAMES if name]
        return double(F.gelu(x)) + math.sqrt(len(names))
"""


def load_source(folder: Path, name: str, text: str) -> ModuleType:
    """Write a module, and import it; whoever asks for it removes it from `sys.modules`."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digest(tmp_path: Path) -> Iterator[Any]:
    """Return what gives the digest of `Layer` in a source text."""
    loaded: list[str] = []

    def of(text: str, root: str = "Layer") -> CodeDigest:
        return code_digest([getattr(load(text), root)])

    def load(text: str) -> ModuleType:
        name = f"layers_{len(loaded)}"
        loaded.append(name)
        return load_source(tmp_path, name, text)

    yield of
    for name in loaded:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("F.gelu(x)", "F.relu(x)"),
        ("import torch.nn.functional as F", "from torch.nn import init as F"),
        ("SCALE = 2.0", "SCALE = 2.5"),
        ('NAMES = {"a", "b", "c"}', 'NAMES = {"a", "b"}'),
        ("return x * SCALE", "return x / SCALE"),
        ("depth = 3", "depth = 4"),
        ("width: int = 4", "width: int = 5"),
        ('["gelu"]', '["relu"]'),
        ("len(x) > Sizes.depth", "len(x) >= Sizes.depth"),
        ("@torch.no_grad()", "@torch.enable_grad()"),
        ("class Layer(nn.Module)", "class Layer(nn.Identity)"),
        ("self.inner = Inner()", "self.inner = nn.Identity()"),
        ("return Options().width", "return Options().width + 1"),
        ("if name]", "if not name]"),
    ],
)
def test_what_counts(digest: Any, old: str, new: str) -> None:
    assert old in PLAIN
    assert digest(PLAIN.replace(old, new)).whole != digest(PLAIN).whole


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", '# Twice.\n\n\nSCALE = 2.0  # of it\n"""A factor."""'),
        ("    return x * SCALE", '    """Double it."""\n    return (\n        x * SCALE\n    )'),
        ("class Sizes:", 'class Sizes:\n    """Some."""\n'),
        ("(x: Tensor) -> Tensor", "(x)"),
        ("rows are too many", "rows; at most 3"),
        ("width: int = 4", "width: float = 4"),
        ("class Inner", "def unused():\n    return 1\n\n\nclass Inner"),
        # What the constructor has built is there to be looked at.
        (
            "    def forward(self, x):\n        return x\n",
            "    def forward(self, x):\n        return -x\n",
        ),
    ],
)
def test_what_does_not_count(digest: Any, old: str, new: str) -> None:
    assert old in PLAIN
    assert digest(PLAIN.replace(old, new, 1)).whole == digest(PLAIN).whole


VALUE = """
import enum
import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


class Scale:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def times(self, x):
        return x * self.by


@dataclass(frozen=True)
class Options:
    by: object


class Kind(enum.Enum):
    TWICE = 2.0


@functools.singledispatch
def spread(x):
    return x


@spread.register
def _(x: torch.Tensor):
    return x / 2.0


def over(by):
    def f(x):
        return x * by

    return f


USED = {value}


class Layer(nn.Module):
    def forward(self, x):
        return USED
"""


@pytest.mark.parametrize(
    "value",
    [
        '{"twice": lambda x: x * 2.0}',
        "[lambda x: x * 2.0]",
        '{"a": [Options({"by": lambda x: 2.0})]}',
        "torch.tensor([1.0, 2.0])",
        "np.array([1.0, 2.0])",
        "np.float32(2.0)",
        "slice(2.0)",
        "Scale(2.0)",
        "Scale(lambda x: x * 2.0)",
        "Scale(2.0).times",
        "Options(2.0)",
        "Options(torch.tensor(2.0))",
        "nn.LeakyReLU(2.0)",
        "functools.partial(over, torch.tensor(2.0))",
        "over(torch.tensor(2.0))",
        'over({"by": lambda x: x * 2.0})',
        "Kind.TWICE",
        "spread",
    ],
)
def test_values_count_by_what_they_hold(digest: Any, value: str) -> None:
    text = VALUE.replace("{value}", value)
    assert digest(text).whole != digest(text.replace("2.0", "3.0")).whole
    assert digest(text).whole == digest(text).whole


HELPERS = {
    "__init__.py": """
from . import deep

BY = 1.0


def near(x):
    from .low import f
    return f(x)
""",
    "deep/__init__.py": "from .inner import f\n\nBY = 2.0\n",
    "deep/inner.py": "def f(x):\n    return x * 3.0\n",
    "low.py": "BY = 5.0\n\n\ndef f(x):\n    return x * 4.0\n",
}


@pytest.mark.parametrize(
    ("top", "inside", "number"),
    [
        ("import helpers", "helpers.deep.f(x)", "3.0"),
        ("import helpers", "helpers.deep.BY * x", "2.0"),
        ("import helpers", "helpers.near(x)", "4.0"),
        ("", "import helpers; return helpers.BY * x", "1.0"),
        ("", "import helpers as h; return h.deep.f(x)", "3.0"),
        ("", "import helpers.low; return helpers.low.f(x)", "4.0"),
        ("", "import helpers.low as low; return low.BY * x", "5.0"),
        ("", "from helpers import low; return low.BY * x", "5.0"),
    ],
)
def test_code_of_other_modules_counts_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str, inside: str, number: str
) -> None:
    found = set()
    for folder, changed in (("a", number), ("b", "9.0")):
        root = tmp_path / folder
        for name, text in HELPERS.items():
            (root / "helpers" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "helpers" / name).write_text(text.replace(number, changed))
        inside = inside if "return" in inside else f"return {inside}"
        text = f"{top}\n\n\ndef forward(x):\n    {inside}\n"
        with monkeypatch.context() as context:
            context.syspath_prepend(root)
            found.add(code_digest([load_source(root, "user", text).forward]).whole)
        for name in [name for name in sys.modules if name.split(".")[0] in ("helpers", "user")]:
            del sys.modules[name]
    assert len(found) == 2


def test_objects_of_libraries_count_by_their_class_and_rings_end() -> None:
    """A logger has times in it; what methods remember of what they computed is no part either."""
    ring: list[object] = [logging.getLogger("a")]
    ring.append(ring)
    before = code_digest([ring]).whole
    logging.getLogger("a").setLevel(logging.ERROR)
    assert code_digest([ring]).whole == before

    class Lazy:
        @functools.cached_property
        def value(self) -> int:
            return 2

    lazy = Lazy()
    before = code_digest([lazy]).whole
    assert lazy.value == 2 and code_digest([lazy]).whole == before


def test_a_function_in_anothers_place_is_seen(digest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(PLAIN)
    layer = next(m for name, m in sys.modules.items() if name == "layers_0")
    monkeypatch.setattr(layer, "double", lambda x: 2 * x)
    patched = code_digest([layer.Layer])
    assert patched.whole != before.whole

    def times(factor: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x * factor

    wholes = set()
    for factor in (3, 4):
        monkeypatch.setattr(layer, "double", times(factor))
        wholes.add(code_digest([layer.Layer]).whole)
    assert len(wholes | {patched.whole, before.whole}) == 4
    monkeypatch.undo()
    assert code_digest([layer.Layer]).whole == before.whole


def test_code_without_a_file_is_known_by_its_instructions() -> None:
    def made(text: str) -> str:
        names: dict[str, Any] = {"__name__": "typed_in"}
        exec(text, names)
        return code_digest([names["f"]]).whole

    assert made("def f(x):\n    return x + 1") == made("def f(x):\n\n    return x + 1  # one")
    assert made("def f(x):\n    return x + 1") != made("def f(x):\n    return x + 2")


def test_modules_and_libraries_are_named(digest: Any) -> None:
    before, after = digest(PLAIN), digest(PLAIN.replace("F.gelu", "F.relu"))
    assert before.libraries == {"torch"} and [*before.modules] == ["layers_0"]
    assert before.modules["layers_0"] != after.modules["layers_1"]


def test_versions_name_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision, "__version__", "0.99.1+cu128")
    found = versions(["torchvision", "av", "unheard_of"])
    assert found["torchvision"] == "0.99.1" and found["unheard_of"] == "unknown"
    assert found["av"][0].isdigit()


def test_helpers_that_are_imported_when_called_count() -> None:
    def f() -> object:
        from tests.encodings import write_numbered

        return write_numbered

    assert "tests.encodings" in code_digest([f]).modules


def test_what_a_backbone_computes_with_is_found() -> None:
    """The files that its activations depend on, and none that only opens, counts or reports."""
    from extract.activations.fingerprints import environment
    from extract.backbone.backbone import Backbone
    from extract.backbone.tada_backbone import TAdaBackbone
    from extract.settings.backbone import BackboneConfig, TrunkConfig

    small = TrunkConfig(width=32, depth=2, heads=2, image_size=32)
    transformer = environment(Backbone(BackboneConfig(small)))["modules"]
    both = {
        *("extract.activations.inputs", "extract.activations.passes", "extract.video.reader"),
        *("extract.backbone.streaming", "extract.backbone.backbone"),
        *("extract.sampling.transforms", "extract.sampling.window_frames"),
    }
    assert both | {"extract.backbone.adapters", "extract.backbone.videomae"} <= {*transformer}
    convolutions = environment(TAdaBackbone(BackboneConfig(network="tada2d", mode="frozen")))
    assert both | {"extract.tada.tada2d", "extract.tada.conv"} <= {*convolutions["modules"]}
    assert "extract.backbone.adapters" not in convolutions["modules"]
    for name in {*transformer, *convolutions["modules"]}:
        assert (REPOSITORY / name.replace(".", "/")).with_suffix(".py").is_file()
        assert not name.startswith(
            ("cache.", "configs.", "train.", "evaluate.", "extract.identity")
        )


def test_linked_libraries_are_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installers may keep a package's files elsewhere, with links where packages are looked for."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/linked_library.py").write_text("def f():\n    return 1\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/linked_library.py").symlink_to(tmp_path / "kept/linked_library.py")
    monkeypatch.setattr(digests, "LIBRARIES", (str(tmp_path / "site-packages"),))
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    importlib.import_module("linked_library")
    assert not digests.is_ours("linked_library")
