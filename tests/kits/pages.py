"""What every page that a report writes is held to: it parses strictly, asks for nothing, and can be read by a screen reader."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import html5lib

_LABELLED = {"svg", "nav"}


def check_page(page: str) -> None:
    """Raises AssertionError, or html5lib's ParseError with the first fault."""
    root: ElementTree.Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    outside = re.search(r"""src=|href=(?!"#)|url\(|@import|https?://""", page)
    assert outside is None, f"it asks for something from outside: {outside}"
    every = list(root.iter())
    ids = [e.attrib["id"] for e in every if "id" in e.attrib]
    assert len(ids) == len(set(ids)), "an id occurs twice"
    anchors = {e.attrib["href"].removeprefix("#") for e in every if e.tag == "a"}
    assert anchors <= set(ids), "a link of the page leads nowhere"
    assert root.attrib.get("lang"), "the page has no language"
    for element in every:
        name = str(element.tag).rpartition("}")[2]
        if name in _LABELLED or element.attrib.get("role") == "region":
            assert element.attrib.get("aria-label"), f"a {name} has no label"
        if name == "table":
            assert all(cell.attrib.get("scope") for cell in element.iter("th")), "a heading does not say what it heads"
        if name == "td" and "tabindex" in element.attrib:
            assert element.attrib.get("aria-label"), "a cell that takes the focus does not say what it is"
        if name == "div" and "wide" in element.attrib.get("class", "").split():
            assert element.attrib.get("tabindex") == "0", "a box that scrolls cannot be reached by keyboard"
