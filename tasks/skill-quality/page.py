"""A skill page and the repository around it, as rubric and mutator both see them.

Standard library only, and nothing of the house: whoever copies this folder has all of it.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*$")
_FENCE = re.compile(r"^\s*```\s*([\w-]*)\s*$")
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_NAMED_FILE = re.compile(r"^[\w./-]+\.(?:md|py|yaml)$")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\[])")
_SKIPPED = (".git", ".venv", "__pycache__", "node_modules", "worktrees")


@dataclass(frozen=True)
class Section:
    """A heading and the lines below it, up to the next heading of any level."""

    level: int
    title: str
    start: int
    end: int


@dataclass(frozen=True)
class Fence:
    """A fenced block; `end` is the line of its closing fence, or the last line if it has none."""

    language: str
    start: int
    end: int
    closed: bool


@dataclass(frozen=True)
class Page:
    lines: list[str]
    front: dict[str, str]
    body: int
    """The first line behind the front matter."""
    fences: list[Fence] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def fenced(self, number: int) -> bool:
        return any(fence.start <= number <= fence.end for fence in self.fences)

    def own_prose(self, section: Section) -> str:
        return prose_of(self, section.start + 1, section.end)

    @property
    def prose(self) -> str:
        return prose_of(self, self.body, len(self.lines))


def parse(text: str) -> Page:
    """The parts of a page; whatever the text, there is an answer."""
    lines = text.split("\n")
    front, body = _front_matter(lines)
    fences = _fences(lines, body)
    page = Page(lines, front, body, fences)
    heads = [
        (number, found)
        for number in range(body, len(lines))
        if (found := _HEADING.match(lines[number])) and not page.fenced(number)
    ]
    ends = [number for number, _ in heads[1:]] + [len(lines)]
    for (number, found), end in zip(heads, ends, strict=False):
        page.sections.append(Section(len(found[1]), found[2], number, end))
    return page


def _front_matter(lines: list[str]) -> tuple[dict[str, str], int]:
    if not lines or lines[0].rstrip() != "---":
        return {}, 0
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            pairs = [one.partition(":") for one in lines[1:number] if ":" in one]
            return {key.strip(): value.strip() for key, _, value in pairs}, number + 1
    return {}, 0


def _fences(lines: list[str], body: int) -> list[Fence]:
    found: list[Fence] = []
    start, language = -1, ""
    for number in range(body, len(lines)):
        mark = _FENCE.match(lines[number])
        if mark is None:
            continue
        if start < 0:
            start, language = number, mark[1]
        else:
            found.append(Fence(language, start, number, True))
            start = -1
    if start >= 0:
        found.append(Fence(language, start, len(lines) - 1, False))
    return found


def prose_of(page: Page, start: int, end: int) -> str:
    """Running text: no headings, no fenced blocks; an item of a list ends like a paragraph."""
    kept: list[str] = []
    for number in range(start, end):
        line = page.lines[number]
        if page.fenced(number) or _HEADING.match(line) or line.lstrip().startswith("|"):
            kept.append("")
        elif _ITEM.match(line):
            kept += ["", _ITEM.sub("", line)]
        else:
            kept.append(line.strip())
    return "\n".join(kept).strip()


def sentences(prose: str) -> list[str]:
    """Sentences; a paragraph ends one, a line break within it does not."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", prose):
        flat = " ".join(paragraph.split())
        found += [one for one in _SENTENCE_END.split(flat) if one]
    return found


def words(text: str) -> list[str]:
    """Words in lower case; what stands in backticks is one."""
    return re.findall(r"[a-z][a-z0-9'_-]*", _SPAN.sub(" code ", text).lower())


def links(page: Page) -> list[str]:
    """Relative links outside of fenced blocks."""
    found = [
        link
        for number in range(page.body, len(page.lines))
        if not page.fenced(number)
        for link in _LINK.findall(page.lines[number])
    ]
    return [link for link in found if "://" not in link and not link.startswith("mailto:")]


def named_files(page: Page) -> list[str]:
    """Files of the repository that stand in backticks; what runs make lies under research/."""
    spans = [span for line in page.lines[page.body :] for span in _SPAN.findall(line)]
    return [one for one in spans if _NAMED_FILE.match(one) and not one.startswith("research/")]


def calls(page: Page) -> list[list[str]]:
    """What is said to be run with `orchestrator.py`, each as the words behind it."""
    found = []
    for number in range(page.body, len(page.lines)):
        line = page.lines[number]
        texts = [line] if page.fenced(number) else _SPAN.findall(line)
        for text in texts:
            _, script, rest = text.partition("orchestrator.py ")
            if script:
                found.append(_split(rest.split(" #")[0]))
    return [call for call in found if call]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def in_shell_fence(page: Page) -> list[int]:
    """Numbers of the lines within blocks that say they are for a shell."""
    return [
        number
        for fence in page.fences
        if fence.language in ("sh", "bash", "console")
        for number in range(fence.start + 1, fence.end + (not fence.closed))
    ]


def repository_of(folder: Path) -> Path:
    """The top of the repository that `folder` is in."""
    for above in (folder, *folder.parents):
        if (above / ".git").exists() or (above / "orchestrator.py").exists():
            return above
    return folder


def files_of(root: Path) -> list[str]:
    """Files that a page may link to, relative to `root`."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED and name[0] != ".")
        found += [os.path.relpath(os.path.join(folder, name), root) for name in sorted(files)]
    return found


@functools.cache
def known_commands(root: Path) -> dict[str, set[str]]:
    """Every command with the options of its module, read from the sources without running them.

    A command of a group has all words: `tools run`.
    """
    found: dict[str, set[str]] = {}
    folder = root / "autohypothesis" / "commands"
    common = _options(folder / "app.py") | {"--help"}
    trees = {path: _parsed(path) for path in sorted(folder.glob("*.py"))}
    groups = {"app": ""}
    calls = [call for tree in trees.values() for call in _calls(tree, "add_typer")]
    for owner, call in [*calls, *calls]:  # a group may be added before the one that it is in
        for word in call.keywords:
            if word.arg == "name" and owner in groups:
                groups[_text(call.args[0])] = f"{groups[owner]}{_text(word.value)} "
    for path, tree in trees.items():
        options = _options(path) | common
        for owner, call in _calls(tree, "command"):
            found[f"{groups[owner]}{_text(call.args[0])}"] = options
    return found


def _parsed(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _calls(tree: ast.AST, method: str) -> list[tuple[str, ast.Call]]:
    """`app.command("runs")` -> ("app", the call); so for any name in place of `app`."""
    return [
        (node.func.value.id, node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr == method and isinstance(node.func.value, ast.Name) and node.args
    ]  # fmt: skip


def _text(node: ast.expr) -> str:
    """A constant or a name."""
    return node.id if isinstance(node, ast.Name) else str(getattr(node, "value", ""))


def _options(path: Path) -> set[str]:
    """Options with a name of their own, and those that are called as their parameter is."""
    nodes = list(ast.walk(_parsed(path)))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    named = {part for text in texts if isinstance(text, str) for part in text.split("/")}
    named |= {f"--{node.arg.replace('_', '-')}" for node in nodes if isinstance(node, ast.arg)}
    return {name for name in named if re.fullmatch(r"--[a-z][a-z-]*", name)}


def command_name(call: list[str], known: dict[str, set[str]]) -> str | None:
    """The command that `call` runs, or None where there is none of that name."""
    pair = " ".join(call[:2])
    if pair in known:
        return pair
    return call[0] if call[0] in known else None


def unknown_options(call: list[str], options: set[str]) -> list[str]:
    given = [word.partition("=")[0] for word in call if word.startswith("--")]
    return [word for word in given if word not in options]
