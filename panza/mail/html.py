"""HTML mail to plain text. Drops what no reader sees; knows no charset and no quoting rules beyond `>`."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

_SKIP = {
    "script",
    "style",
    "head",
    "title",
    "template",
    "noscript",
    "object",
    "iframe",
    "svg",
    "img",
    "select",
    "button",
}
_BLOCK = {
    "address", "article", "blockquote", "center", "dd", "div", "dl", "dt", "fieldset", "figure", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul",
}  # fmt: skip
_SPACED = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "ul", "ol", "table"}  # an empty line around
_HIDDEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all|font-size\s*:\s*0(?:\.0+)?(?:px|pt|em|%)?\s*(?:;|$|!)"
    r"|opacity\s*:\s*0(?:\.0+)?\s*(?:;|$|!)|max-height\s*:\s*0(?:px)?\s*(?:;|$|!)",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"(?<![-\w])(background(?:-color)?|color)\s*:\s*([^;!]+)", re.IGNORECASE)
_SIGNATURES = ("gmail_signature", "moz-signature", "x_signature", "ms-outlook-mobile-signature")
_FORWARD_LINE = re.compile(r"border(?:-top)?\s*:\s*(?:none;\s*border-top\s*:\s*)?solid\s+#?\w+\s+1\.0pt", re.IGNORECASE)
_SPACES = re.compile(r"[ \t\r\n\f\u00a0]+")


def to_text(source: str) -> str:
    """The text a reader of `source` sees: paragraphs apart, lists with marks, links with their address, quotes with `>`.

    A signature that the mail program marked comes under a line "-- ".
    """
    body = LexborHTMLParser(source).body
    if body is None:
        return ""
    page = _Page()
    stack: list[tuple[LexborNode, bool]] = [(body, True)]
    while stack:  # no recursion: mail nests deeper than Python may call
        node, opening = stack.pop()
        if not opening:
            page.close(node)
        elif node.is_text_node:
            page.write(node.text_content or "")
        elif node.is_element_node and node.tag not in _SKIP and not _is_hidden(node):
            page.open(node)
            stack.append((node, False))
            child = node.last_child
            while child is not None:
                stack.append((child, True))
                child = child.prev
    return page.text()


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    style = attributes.get("style") or ""
    if "hidden" in attributes or _HIDDEN.search(style):
        return True
    colours = {key.lower().removesuffix("-color"): value.strip().lower() for key, value in _COLOUR.findall(style)}
    return colours.get("color") in ("#fff", "#ffffff", "white", "transparent") and (
        colours.get("background", "white") in ("#fff", "#ffffff", "white")
    )


class _Page:
    """Text under way: finished lines, the line being written, and how deep in quotes and lists it stands."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = ""
        self.quotes = 0
        self.pre = 0
        self.lists: list[int] = []  # the next number of each open list; 0 for bullets

    @property
    def prefix(self) -> str:
        return "> " * min(self.quotes, 8)

    def write(self, text: str) -> None:
        if self.pre:
            *full, last = text.replace("\r\n", "\n").split("\n")
            for line in full:
                self.line += line
                self.end_line(force=True)
            self.line += last
            return
        text = _SPACES.sub(" ", text)
        self.line += text.lstrip() if not self.line or self.line.endswith((" ", "\t")) else text

    def end_line(self, force: bool = False) -> None:
        if self.line.strip() or force:
            self.lines.append(self.prefix + self.line.rstrip())
        self.line = ""

    def gap(self) -> None:
        self.end_line()
        if self.lines and self.lines[-1].strip("> "):
            self.lines.append(self.prefix.rstrip())

    def open(self, node: LexborNode) -> None:
        tag, attributes = node.tag, node.attributes
        if tag == "br":
            self.end_line(force=True)
        elif tag in _BLOCK:
            self.gap() if tag in _SPACED and not (tag in ("ul", "ol") and self.lists) else self.end_line()
        elif tag in ("td", "th") and self.line.strip():
            self.line = self.line.rstrip() + "\t"
        if tag == "blockquote" and _is_quote(attributes):
            self.quotes += 1
        elif tag == "pre":
            self.pre += 1
        elif tag in ("ul", "ol"):
            self.lists.append(1 if tag == "ol" else 0)
        elif tag == "li":
            self.line = self._bullet()
        elif tag == "hr":
            self.lines.append(self.prefix + "_" * 32)
        self._mark(attributes)

    def _bullet(self) -> str:
        depth = "  " * min(max(len(self.lists) - 1, 0), 8)
        if not self.lists or not self.lists[-1]:
            return depth + "- "
        self.lists[-1] += 1
        return f"{depth}{self.lists[-1] - 1}. "

    def _mark(self, attributes: dict[str, str | None]) -> None:
        """Keep as text what only the markup says: here begins a signature, here an answered mail."""
        classes = f"{attributes.get('class') or ''} {attributes.get('id') or ''}".lower()
        if any(name in classes for name in _SIGNATURES) or "signature" in classes.split():
            self.end_line()
            self.lines.append(self.prefix + "-- ")
        elif "divrplyfwdmsg" in classes or _FORWARD_LINE.search(attributes.get("style") or ""):
            self.end_line()
            self.lines.append(self.prefix + "_" * 32)

    def close(self, node: LexborNode) -> None:
        tag = node.tag
        if tag == "a":
            self._link(node.attributes.get("href") or "")
        elif tag in _BLOCK:
            self.gap() if tag in _SPACED and not (tag in ("ul", "ol") and len(self.lists) > 1) else self.end_line()
        if tag == "blockquote" and _is_quote(node.attributes):
            if self.lines and not self.lines[-1].strip("> "):
                self.lines.pop()
            self.quotes -= 1
            self.lines.append(self.prefix.rstrip())
        elif tag == "pre":
            self.pre -= 1
        elif tag in ("ul", "ol") and self.lists:
            self.lists.pop()

    def _link(self, href: str) -> None:
        """The address after a link's words, unless the words are the address."""
        bare = href.removeprefix("mailto:").rstrip("/")
        shown = self.line.rstrip().rstrip("/")
        if href.startswith(("http://", "https://")) and not shown.endswith((bare, bare.partition("://")[2])):
            self.line = f"{self.line.rstrip()} ({href})"

    def text(self) -> str:
        self.end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.lines)).strip("\n")


def _is_quote(attributes: dict[str, str | None]) -> bool:
    """A blockquote that quotes; Outlook and old editors also use the tag to indent one's own words."""
    style = (attributes.get("style") or "").replace(" ", "").lower()
    indents = style.startswith("margin") and "border" not in style and "cite" not in attributes
    return not indents or "gmail_quote" in (attributes.get("class") or "")
