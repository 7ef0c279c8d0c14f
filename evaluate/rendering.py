"""HTML from the templates of evaluate."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


def render_template(template: str, **values: Any) -> str:
    """Return a template filled in; `values`, functions too, are available in it by name.

    Raises:
        jinja2.UndefinedError: the template uses a name that it is not given.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
