"""A page as a program reads it: elements, links, headings, words."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

from .conftest import Answer, Hub, ask

BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"
"""What tells a browser from a program."""
VOID = {"meta", "link", "br", "hr", "img"}


@dataclass
class Reading(HTMLParser):
    """What is on one page."""

    html: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    words: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> ends {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def links(self) -> list[str]:
        return [one["href"] for one in self.all("a")]


def read(answer: Answer) -> Reading:
    return Reading(answer.body.decode())


def crawl(hub: Hub, *starts: str) -> dict[str, Answer]:
    """Every page that links lead to, by its address on the hub."""
    ahead = list(starts or ("/",))
    found: dict[str, Answer] = {}
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found[path] = ask("GET", hub.url + path, Accept=BROWSER)
        if not found[path].headers["content-type"].startswith("text/html"):
            continue
        for link in read(found[path]).links:
            whole = urlsplit(urldefrag(urljoin(hub.url + path, link))[0])
            if f"{whole.scheme}://{whole.netloc}" == hub.url:
                ahead.append(whole.path + (f"?{whole.query}" if whole.query else ""))
    return found
