"""What pyproject.toml cannot say: the folders are installed below the import name `palindrome`.

A checkout has the packages cache, configs, evaluate, extract and train, and so has an editable
installation. Anywhere else such names belong to others, too (Hugging Face's `evaluate`, a user's
own `train.py`), so that a wheel has the same files as palindrome.cache and so on, their imports
rewritten.
"""

import ast
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STAGES = ("cache", "configs", "evaluate", "extract", "train")
FOLDERS = find_packages(include=[f"{stage}{below}" for stage in STAGES for below in ("", ".*")])


def rewrite_imports(source: str, where: str) -> str:
    """Return the source of a module whose imports of the stages begin with `palindrome.`.

    Raises:
        ValueError: an import binds a stage's own name, which would not be there.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.partition(".")[0] in STAGES]
            if any(alias.asname is None for alias in names):
                raise ValueError(f"{where}:{node.lineno}: write `from … import …`, or `as` a name")
            places = [(alias.lineno, alias.col_offset) for alias in names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            ours = (node.module or "").partition(".")[0] in STAGES
            places = [(node.lineno, node.col_offset + len("from "))] if ours else []
        else:
            continue
        for number, column in reversed(places):
            line = lines[number - 1].encode()  # columns count bytes
            lines[number - 1] = (line[:column] + b"palindrome." + line[column:]).decode()
    return "".join(lines)


class BuildPy(build_py):
    """Copies modules with their imports rewritten."""

    def run(self):  # type: ignore[no-untyped-def]
        if not self.editable_mode:  # what an earlier build left would be packed, too
            shutil.rmtree(Path(self.build_lib) / "palindrome", ignore_errors=True)
        super().run()

    def build_module(self, module, module_file, package):  # type: ignore[no-untyped-def]
        outfile, copied = super().build_module(module, module_file, package)
        path = Path(outfile)
        text = rewrite_imports(Path(module_file).read_text(encoding="utf-8"), module_file)
        path.write_text(text, encoding="utf-8")
        return outfile, copied


class EditableWheel(editable_wheel):
    """Offers the names of a checkout beside those of a wheel."""

    def run(self):  # type: ignore[no-untyped-def]
        self.distribution.packages = [*FOLDERS, *self.distribution.packages]
        super().run()


setup(
    packages=[f"palindrome.{name}" for name in FOLDERS],
    package_dir={f"palindrome.{stage}": stage for stage in STAGES},
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
)
