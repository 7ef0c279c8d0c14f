"""What the site has beside docs/: pages and pictures of the repository that docs/ links to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE = [
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "benchmarks/results").rglob("*"),
]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies beside docs/, with the names that it has in the repository."""
    for path in BESIDE:
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links lead to these, where docs/ is the site's root."""
    if page.file.src_uri in ("ARCHITECTURE.md", "CHANGELOG.md"):
        return markdown.replace("](docs/", "](")
    return re.sub(r"\]\(\.\./(?=ARCHITECTURE|CHANGELOG|benchmarks/)", "](", markdown)
