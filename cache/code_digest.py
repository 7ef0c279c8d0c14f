"""What code computes, as a digest: of functions and classes, and of all our code that they call.

The parsed syntax counts. Comments, blank lines, docstrings, annotations and the messages of errors
do not, nor does the file that a definition stands in. Code of libraries counts by their versions.

Functions are taken as they are in this process, so that one that was put in another's place is
seen, and so are the values that they use: tensors, containers, objects of ours with what they hold.
What is called through an object whose class no name tells is not followed: name such classes among
the roots.
"""

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OURS = ("cache", "configs", "evaluate", "extract", "train", "palindrome")
INSTALLED = "palindrome."  # what a wheel puts before their names (setup.py)
IGNORED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind", "msg"}
GENERATED = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, Path, range, slice)
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
        attributes: names with an attribute of theirs, an attribute of that, and so on.
        imports: modules, as written, with what it imports from them when it is called, and the name
            that this has in it; nothing is imported from a module that is imported as a whole.
    """

    digest: str
    names: frozenset[str] = frozenset()
    attributes: frozenset[tuple[str, ...]] = frozenset()
    imports: frozenset[tuple[str, str, str]] = frozenset()


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
    """Return whether a module belongs to no library, but to this project or its user."""
    top = module.partition(".")[0]
    if top in OURS:
        return True
    if top in sys.stdlib_module_names and top != "__main__":
        return False
    loaded = sys.modules.get(module, sys.modules.get(top))
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
    else:
        found = importlib.util.find_spec(top)
        file = None if found is None else found.origin
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
        self._open: set[int] = set()  # values that hold what is looked at just now

    def add(self, thing: object, builds: bool = False) -> str:
        """Take up a function or class; return what stands for it, or for any other value.

        Args:
            builds: the function is a module's constructor.
        """
        overloads = getattr(thing, "registry", None) if isinstance(thing, FunctionType) else None
        if isinstance(overloads, MappingProxyType):  # of functools.singledispatch
            return _hash("overloads", *sorted(self.add(each) for each in overloads.values()))
        owner = thing.__self__ if inspect.ismethod(thing) else None
        thing = _unwrapped(thing)
        if owner is not None and not isinstance(owner, type):
            return _hash("method", self.add(thing), self.add(owner))
        if isinstance(thing, ModuleType):
            return self._module(thing)
        if isinstance(thing, FunctionType | type):
            if not is_ours(thing.__module__ or ""):
                return self._named(thing)
            if self._is_skipped(thing):
                return thing.__qualname__
            if (id(thing), builds) not in self._seen:
                self._seen.add((id(thing), builds))
                self._todo.append((thing, builds))
            if isinstance(thing, FunctionType):
                return _syntax(thing.__code__.co_filename, thing.__code__).digest
            return thing.__qualname__
        if is_plain(thing):
            return plain(thing)
        if isinstance(thing, functools.partial):
            values = [self.add(v) for v in (thing.func, *thing.args, *thing.keywords.values())]
            return _hash("partial", *values)
        return self._named(thing) if inspect.isroutine(thing) else self._value(thing)

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
        imported: dict[str, Any] = {}
        for written, name, known_as in sorted(syntax.imports):
            module = _absolute(written, function)
            if not is_ours(module):
                lines.append(f"{self._library(module)}.{name}")
                continue
            value = _imported(module, name)
            if name:  # of a whole module counts what is used of it
                lines.append(f"{_checkout_name(module)}.{name} {self.add(value)}")
            top, below, _ = known_as.partition(".")
            imported[top] = sys.modules.get(top) if below else value
        for name in sorted(syntax.names):
            value = imported.get(name, function.__globals__.get(name))
            if value is None or (builds and isinstance(value, type) and _is_module_class(value)):
                continue
            if isinstance(value, ModuleType) and is_ours(value.__name__):
                used = sorted(chain for chain in syntax.attributes if chain[0] == name)
                lines += [
                    f"{'.'.join(chain)} {self.add(_attribute(value, chain))}" for chain in used
                ]
                if not used:
                    lines.append(f"{name} {self.add(value)}")
            elif name not in imported:
                lines.append(f"{name} {self.add(value)}")
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
            elif not _is_special(kind, name):
                lines.append(f"{name} {self.add(value)}")
        if made:
            for field in dataclasses.fields(kind):
                if field.default_factory is not dataclasses.MISSING:
                    lines.append(f"{field.name} {self.add(field.default_factory)}")
        return _hash(*lines)

    def _value(self, value: object) -> str:
        """Take up what a value holds; return what stands for it."""
        if isinstance(value, Tensor):
            numbers = torch.empty(0) if value.is_meta else value.detach().cpu().contiguous()
            data = numbers.reshape(-1).view(torch.uint8).numpy().tobytes()
            return _hash(f"{value.dtype} {[*value.shape]}", data.hex())
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            return _hash(f"{value.dtype} {value.shape}", value.tobytes().hex())
        if isinstance(value, torch.jit.ScriptFunction):
            return _hash(str(value.code))
        kind = self.add(type(value))
        if id(value) in self._open:
            return kind
        self._open.add(id(value))
        parts: list[str] = []
        if isinstance(value, dict):
            parts = sorted(f"{self.add(key)} {self.add(each)}" for key, each in value.items())
        elif isinstance(value, list | tuple):
            parts = [self.add(each) for each in value]
        elif isinstance(value, set | frozenset):
            parts = sorted(self.add(each) for each in value)
        elif self._is_looked_into(type(value)):
            parts = [f"{name} {self.add(each)}" for name, each in sorted(_state(value).items())]
        self._open.remove(id(value))
        return _hash(kind, *parts) if parts else kind

    def _is_looked_into(self, kind: type) -> bool:
        """Return whether what objects of a class hold is numbers, code or the like.

        A library's may hold addresses and times.
        """
        if issubclass(kind, nn.Module | SimpleNamespace):
            return True
        return is_ours(kind.__module__) and not self._is_skipped(kind)

    def _is_skipped(self, thing: FunctionType | type) -> bool:
        return _within(_checkout_name(thing.__module__), self.skip)

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


def _absolute(module: str, function: FunctionType) -> str:
    """Return the whole name of a module that a function imports."""
    package = function.__globals__.get("__package__") or ""
    return importlib.util.resolve_name(module, package) if module.startswith(".") else module


def _imported(module: str, name: str) -> object:
    """Return what is imported: of a module or, without a name, the module; None if it is gone."""
    try:
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            return importlib.import_module(f"{module}.{name}")
    except ImportError:
        return None
    return getattr(found, name) if name else found


def _attribute(module: ModuleType, chain: tuple[str, ...]) -> object:
    """Return what a chain of attributes leads to, as far as it leads through modules of ours."""
    value: Any = module
    for name in chain[1:]:
        if not isinstance(value, ModuleType) or not is_ours(value.__name__):
            break
        value = getattr(value, name, None)
    return value


def _state(value: object) -> dict[str, object]:
    """Return what an object holds, less what its methods keep of what they have computed."""
    kind = type(value)
    slots = {name for each in kind.__mro__ for name in vars(each).get("__slots__", ())}
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    made = functools.cached_property
    return {n: each for n, each in held.items() if not isinstance(getattr(kind, n, None), made)}


def _is_special(kind: type, name: str) -> bool:
    """Return whether Python made an attribute of a class, other ones in other versions."""
    edge = "_" if issubclass(kind, enum.Enum) else "__"
    return name == "_abc_impl" or (name.startswith(edge) and name.endswith(edge))


def _checkout_name(module: str) -> str:
    """Return the name that a module of ours has in a checkout."""
    return module.removeprefix(INSTALLED)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _is_module_class(kind: type) -> bool:
    return issubclass(kind, nn.Module)


def is_plain(value: object) -> bool:
    """Return whether a value is known by how it is written."""
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    return isinstance(value, PLAIN)


def plain(value: Any) -> str:
    """Return how a value is written, the same in all processes."""
    if not is_plain(value):
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
        self.attributes: set[tuple[str, ...]] = set()
        self.imports: set[tuple[str, str, str]] = set()

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
        elif isinstance(node, ast.Attribute):
            if chain := _chain(node):
                self.attributes.add(chain)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for each in node.names:
                self.imports.add((module, each.name, each.asname or each.name))
        elif isinstance(node, ast.Import):
            for each in node.names:
                self.imports.add((each.name, "", each.asname or each.name))


def _chain(node: ast.expr) -> tuple[str, ...]:
    """Return a name and the attributes after it; nothing if it begins with no name."""
    if isinstance(node, ast.Name):
        return (node.id,)
    before = _chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*before, node.attr) if before and isinstance(node, ast.Attribute) else ()


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
