"""XML to the tree, with a parser that refuses document types, entities and anything off the page.

<opentsm>
  <tscf-interface name="access">
    <ports>v4</ports>            one setting is one element; a list is written as one element
    <ports>v6</ports>            for each item, or separated by commas in one
  </tscf-interface>
</opentsm>
"""

from __future__ import annotations

import xml.sax
import xml.sax.handler
import xml.sax.xmlreader
from typing import Final

import defusedxml.sax
from defusedxml.common import DefusedXmlException, DTDForbidden

from opentsm.config.errors import Problems
from opentsm.config.tree import Document, Entry, Node, unreadable

ROOT: Final = "opentsm"
_ROOT_DEPTH, _OBJECT_DEPTH, _FIELD_DEPTH = 1, 2, 3


def read_xml(text: str, source: str) -> Document:
    """Parse XML text.

    Raises:
        ConfigErrors: it is not well-formed, has a DTD or entities, or is not shaped as above.
    """
    handler = _Handler(source)
    try:
        defusedxml.sax.parseString(text.encode(), handler, forbid_dtd=True)
    except DefusedXmlException as error:
        raise unreadable(
            f"this XML is refused: it has {_forbidden(error)}",
            source=source,
            line=handler.line,
            hint="remove the DOCTYPE and every entity",
        ) from None
    except xml.sax.SAXParseException as error:
        raise unreadable(
            f"not well-formed XML: {error.getMessage()}", source=source, line=error.getLineNumber()
        ) from None
    except (ValueError, LookupError) as error:
        raise unreadable(f"not readable as XML: {error}", source=source, line=handler.line) from None
    handler.problems.raise_any()
    return handler.document


def _forbidden(error: DefusedXmlException) -> str:
    return "a document type" if isinstance(error, DTDForbidden) else "an entity or an external reference"


class _Handler(xml.sax.handler.ContentHandler):
    """Builds the tree; repeated fields become a list."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.document = Document(source)
        self.problems = Problems(source)
        self._locator: xml.sax.xmlreader.Locator | None = None
        self._depth = 0
        self._node: Node | None = None
        self._text: list[str] = []
        self._field_line = 0

    @property
    def line(self) -> int | None:
        return None if self._locator is None else self._locator.getLineNumber()

    def setDocumentLocator(self, locator: xml.sax.xmlreader.Locator) -> None:
        self._locator = locator

    def startElement(self, name: str, attrs: xml.sax.xmlreader.AttributesImpl) -> None:
        self._refuse_text(f"before <{name}>")
        self._depth += 1
        given = dict(attrs.items())
        if self._depth == _ROOT_DEPTH:
            if name != ROOT:
                self._problem(f"the outermost element is <{name}>", f"it must be <{ROOT}>")
            given = {key: value for key, value in given.items() if not key.startswith(("xmlns", "xsi:"))}
        elif self._depth == _OBJECT_DEPTH:
            self._node = Node(name, given.pop("name", ""), self.line or 0)
            self.document.nodes.append(self._node)
        elif self._depth == _FIELD_DEPTH:
            self._field_line = self.line or 0
        else:
            self._problem(f"<{name}> is inside a setting", "a setting holds text only")
        for attribute in given:
            self._problem(
                f"<{name}> has an attribute {attribute!r}",
                "only an object has one, name; settings are elements inside it",
            )

    def endElement(self, name: str) -> None:
        if self._depth == _FIELD_DEPTH and self._node is not None:
            self._add_entry(self._node, name, "".join(self._text).strip())
            self._text.clear()
        self._refuse_text(f"in <{name}>")
        self._depth -= 1

    def characters(self, content: str) -> None:
        self._text.append(content)

    def _add_entry(self, node: Node, key: str, text: str) -> None:
        for index, entry in enumerate(node.entries):
            if entry.key == key:
                known = entry.value if isinstance(entry.value, list) else [entry.value]
                node.entries[index] = Entry(key, [*known, text], entry.line)
                return
        node.entries.append(Entry(key, text, self._field_line))

    def _refuse_text(self, where: str) -> None:
        stray = "".join(self._text).strip()
        self._text.clear()
        if stray:
            self._problem(
                f"text {stray[:40]!r} {where} belongs to no setting", "write <setting>text</setting>"
            )

    def _problem(self, message: str, hint: str) -> None:
        self.problems.add(message, line=self.line, hint=hint)
