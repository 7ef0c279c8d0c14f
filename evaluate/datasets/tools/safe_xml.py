"""XML without what makes it dangerous."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, TreeBuilder, XMLParser

from evaluate.datasets.fields import short_repr


class _WithoutTypes(TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which may expand without end; remove that")


def read_xml(path: Path) -> Element:
    """Return the root of an XML file.

    Raises:
        ValueError: there is no such file, it is no XML, or it declares a document type.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check its path.")
    parser = XMLParser(target=_WithoutTypes())
    try:
        parser.feed(path.read_bytes())
        root: Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not usable XML ({error}); export or copy it again.") from error
    return root


def get_attribute(element: Element, key: str, where: str) -> str:
    """Return an attribute; ValueError if it is missing."""
    value = element.get(key)
    if value is None:
        raise ValueError(f"{where}: {key!r} is missing in <{short_repr(element.tag)[1:-1]}>.")
    return value
