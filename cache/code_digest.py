"""What code computes, as a digest: of functions and classes, and of all of ours that they call.

The parsed syntax counts. Comments, blank lines, docstrings, annotations and the messages of errors
do not, nor does the file that a definition stands in. Code of libraries counts by their versions.

Functions are taken as they are in this process, so that one that was put in another's place is
seen. What is called through an object whose class no name tells is not followed: name such classes
among the roots.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

OURS = ("cache", "configs", "evaluate", "extract", "train", "palindrome")
INSTALLED = "palindrome."  # what a wheel puts before their names (setup.py)
IGNORED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind", "msg"}
GENERATED = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, Path)
_FOLDERS = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
LIBRARIES = tuple({str(path) for f in _FOLDERS for path in (Path(f).absolute(), Path(f).resolve())})


@dataclass(frozen=True)
class CodeDigest:
    """Code by its content.

    Args:
        whole: over all definitions.
        modules: digests of what was used of each module, to name what differs.
        libraries: top-level packages that it calls, the standard library left out.
    """

    whole: str
    modules: dict[str, str]
    libraries: frozenset[str]


@dataclass(frozen=True)
class _Syntax:
    """A function's own digest, and what it mentions.

    Args:
        names: that may be its module's.
        attributes: names with an attribute of theirs.
        imports: modules with what it imports from them when it is called.
    """

    digest: str
    names: frozenset[str] = frozenset()
    attributes: frozenset[tuple[str, str]] = frozenset()
    imports: frozenset[tuple[str, str]] = frozenset()


def code_digest(roots: Iterable[object], skip: tuple[str, ...] = ()) -> CodeDigest:
    """Return the digest of functions, classes or other values and of all that they call.

    A module's constructor counts, but not the classes of modules that it builds: what it has built
    is there to be looked at.

    Args:
        skip: modules, or packages, of ours that compute nothing.
    """
    walk = _Walk(skip)
    labels = [walk.add(root) for root in roots]
    walk.run()
    modules = {name: _hash(*sorted(found)) for name, found in sorted(walk.found.items())}
    every = {digest for found in walk.found.values() for digest in found}
    return CodeDigest(_hash(*sorted({*labels, *every})), modules, frozenset(walk.libraries))


def read_loaded_sources() -> None:
    """Read the files of our modules that are loaded, before somebody edits them."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and is_ours(name):
            _source(file)


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the version of each library without its build, which says what it runs on."""
    return {name: _version(name) for name in sorted(libraries)}


@lru_cache
def is_ours(module: str) -> bool:
    """Return whether a module is no library's: one of this project, or of its user."""
    top = module.partition(".")[0]
    if top in OURS:
        return True
    if top in sys.stdlib_module_names and top != "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return True
    # As named, too: installers may leave links there to files that stand elsewhere.
    paths = str(Path(file).absolute()), str(Path(file).resolve())
    return not any(path.startswith(LIBRARIES) for path in paths)


class _Walk:
    """One walk over definitions.

    Attributes:
        found: digests of definitions, by module.
        libraries: that are called.
    """

    def __init__(self, skip: tuple[str, ...]) -> None:
        self.skip = skip
        self.found: dict[str, set[str]] = {}
        self.libraries: set[str] = set()
        self._todo: list[tuple[FunctionType | type, bool]] = []
        self._seen: set[tuple[int, bool]] = set()

    def add(self, thing: object, builds: bool = False) -> str:
        """Take up a function or class; return what stands for it, or for any other value.

        Args:
            builds: the function is a module's constructor.
        """
        thing = _unwrapped(thing)
        if isinstance(thing, ModuleType):
            return self._module(thing)
        if isinstance(thing, FunctionType | type):
            if not is_ours(thing.__module__ or ""):
                return self._named(thing)
            if _within(_checkout_name(thing.__module__), self.skip):
                return thing.__qualname__
            if (id(thing), builds) not in self._seen:
                self._seen.add((id(thing), builds))
                self._todo.append((thing, builds))
            if isinstance(thing, FunctionType):
                return _syntax(thing.__code__.co_filename, thing.__code__).digest
            return thing.__qualname__
        if _is_plain(thing):
            return plain(thing)
        if isinstance(thing, functools.partial):
            values = [self.add(v) for v in (thing.func, *thing.args, *thing.keywords.values())]
            return _hash("partial", *values)
        return self._named(thing) if inspect.isroutine(thing) else self.add(type(thing))

    def run(self) -> None:
        """Follow what was taken up until nothing is new."""
        while self._todo:
            thing, builds = self._todo.pop()
            digest = (
                self._function(thing, builds)
                if isinstance(thing, FunctionType)
                else self._class(thing)
            )
            self.found.setdefault(_checkout_name(thing.__module__), set()).add(digest)

    def _function(self, function: FunctionType, builds: bool) -> str:
        syntax, lines = _syntax(function.__code__.co_filename, function.__code__), []
        for name in sorted(syntax.names):
            value = function.__globals__.get(name)
            if value is None or (builds and isinstance(value, type) and _is_module_class(value)):
                continue
            if isinstance(value, ModuleType) and is_ours(value.__name__):
                used = sorted(a for n, a in syntax.attributes if n == name)
                for attribute in used:
                    lines.append(f"{name}.{attribute} {self.add(getattr(value, attribute, None))}")
                if not used:
                    lines.append(f"{name} {self.add(value)}")
            else:
                lines.append(f"{name} {self.add(value)}")
        for module, name in sorted(syntax.imports):
            value = getattr(importlib.import_module(module), name, None)
            lines.append(f"{_checkout_name(module)}.{name} {self.add(value)}")
        for cell in function.__closure__ or ():
            try:
                lines.append(self.add(cell.cell_contents))
            except ValueError:  # not filled yet
                continue
        return _hash(syntax.digest, *lines)

    def _class(self, kind: type) -> str:
        lines = [kind.__qualname__]
        lines += [self.add(base) for base in kind.__bases__ if base is not object]
        made = dataclasses.is_dataclass(kind)
        for name, value in sorted(vars(kind).items()):
            value = _unwrapped(value)
            if isinstance(value, FunctionType):
                if made and name in GENERATED and value.__code__.co_filename.startswith("<"):
                    continue
                builds = name == "__init__" and _is_module_class(kind)
                lines.append(f"{name} {self.add(value, builds)}")
            elif not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl":
                lines.append(f"{name} {self.add(value)}")
        if made:
            for field in dataclasses.fields(kind):
                if field.default_factory is not dataclasses.MISSING:
                    lines.append(f"{field.name} {self.add(field.default_factory)}")
        return _hash(*lines)

    def _module(self, module: ModuleType) -> str:
        """Take up all that a module of ours defines; return a library's name."""
        lines = []
        for name, value in sorted(vars(module).items()) if is_ours(module.__name__) else ():
            mine = getattr(value, "__module__", None) == module.__name__
            if mine and isinstance(value, FunctionType | type):
                lines.append(f"{name} {self.add(value)}")
        return _hash(*lines) if lines else self._library(module.__name__)

    def _named(self, thing: Any) -> str:
        """Return the name of a library's function or class."""
        owner = getattr(thing, "__self__", None)
        module = thing.__module__ or getattr(owner, "__name__", type(owner).__module__)
        return f"{self._library(module)}.{thing.__qualname__}"

    def _library(self, module: str) -> str:
        """Return a library's name, noted; of a module of ours nothing: it may be renamed."""
        if is_ours(module):
            return ""
        top = module.partition(".")[0]
        if top not in sys.stdlib_module_names:
            self.libraries.add(top)
        return module


def _unwrapped(value: object) -> object:
    """Return the function behind methods, properties and decorators that keep it."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    if callable(value) and not isinstance(value, type) and hasattr(value, "__wrapped__"):
        value = inspect.unwrap(value)
    if inspect.ismethod(value):
        value = value.__func__
    return value


def _checkout_name(module: str) -> str:
    """Return the name that a module of ours has in a checkout."""
    return module.removeprefix(INSTALLED)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _is_module_class(kind: type) -> bool:
    return issubclass(kind, nn.Module)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return isinstance(value, PLAIN)


def plain(value: Any) -> str:
    """Return how a value is written, the same in all processes."""
    if not _is_plain(value):
        return type(value).__qualname__  # what it holds may have an address in it
    return f"{sorted(map(repr, value))}" if isinstance(value, set | frozenset) else repr(value)


@functools.cache
def _syntax(file: str, code: CodeType) -> _Syntax:
    """Return what counts of a function: of its source or, where that is not here, its bytecode.

    Args:
        file: of the code, which is equal to the same code in other files.
    """
    nodes = [
        node
        for node in _definitions(file).get(code.co_firstlineno, ())
        if getattr(node, "name", "<lambda>") == code.co_name
    ]
    if not nodes:
        return _bytecode(code)
    writer = _Writer()
    for node in nodes:
        writer.write(node)
    parts = frozenset(writer.names), frozenset(writer.attributes), frozenset(writer.imports)
    return _Syntax(_hash("".join(writer.out)), *parts)


def _bytecode(code: CodeType) -> _Syntax:
    parts, names = [code.co_code.hex(), *code.co_names, *code.co_varnames], set(code.co_names)
    for value in code.co_consts:
        inner = _bytecode(value) if isinstance(value, CodeType) else None
        names |= inner.names if inner else set()
        parts.append(inner.digest if inner else plain(value))
    return _Syntax(_hash(*parts), frozenset(names))


@functools.cache
def _definitions(file: str) -> dict[int, list[ast.AST]]:
    """Return a file's functions by the line that they begin in."""
    found: dict[int, list[ast.AST]] = {}
    try:
        tree = ast.parse(_source(file))
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.setdefault(first, []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault(node.lineno, []).append(node)
    return found


@functools.cache
def _source(file: str) -> bytes:
    """Return a file's content as it was when it was first asked for; empty if it is not there."""
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


class _Writer:
    """Writes what counts of syntax, the same in all versions of Python, and collects names."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.imports: set[tuple[str, str]] = set()

    def write(self, node: ast.AST) -> None:
        """Write a node and what is in it."""
        self.out.append(f"({type(node).__name__}")
        if isinstance(node, ast.Constant):
            self.out.append(f" {node.value!r}")
        elif not isinstance(node, ast.Raise):  # whether it is raised the condition says
            self._note(node)
            for field in node._fields:
                value = getattr(node, field, None)
                if value is None or value == [] or field in IGNORED:
                    continue
                self.out.append(f" {field}=")
                for part in value if isinstance(value, list) else (value,):
                    if not isinstance(part, ast.AST):
                        part = _checkout_name(part) if field == "module" else part
                        self.out.append(f"{part!r},")
                    elif not _is_text(part):
                        self.write(part)
        self.out.append(")")

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self.names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            self.attributes.add((node.value.id, node.attr))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self.imports |= {(node.module, alias.name) for alias in node.names}


def _is_text(node: ast.AST) -> bool:
    """Return whether a node is a docstring, or any string that is a statement by itself."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _version(library: str) -> str:
    found = getattr(sys.modules.get(library), "__version__", None)
    if found is None:
        try:
            found = version(library)
        except PackageNotFoundError:
            found = "unknown"
    return str(found).partition("+")[0]


def _hash(*parts: str) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="backslashreplace")
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()
