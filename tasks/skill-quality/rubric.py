"""Scores a skill page from 0 to 100, the same page always the same.

    python tasks/skill-quality/rubric.py [PAGE]

Prints one JSON line: the score, and every criterion between 0 and 1 as a metric. Faults are
counted, not averaged, so that a page cannot dilute them; and the whole is multiplied by
`substance`, which is low for a page that is empty, repeats itself or is no running text.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True  # a scorer leaves no file behind in the checkout

from page import (  # noqa: E402
    Page,
    Section,
    calls,
    command_name,
    in_shell_fence,
    known_commands,
    links,
    named_files,
    parse,
    repository_of,
    sentences,
    unknown_options,
    words,
)

FOLDER = Path(__file__).resolve().parent
WEIGHTS = {
    "front_matter": 10, "headings": 8, "sections": 16, "length": 8, "sentences": 12,
    "commands": 18, "fences": 6, "references": 8, "repetition": 6, "tidy": 4, "plain": 4,
}  # fmt: skip
SECTIONS = ("When to use", "Steps", "Example", "When it fails")
"""What a page needs, in this order; others may stand between them."""
MAX_BYTES = 200_000
LONG_SENTENCE = 24
LONG_LINE = 100
_VAGUE = """
various stuff things thing etc basically simply just really very quite somehow appropriate properly
obviously actually maybe perhaps probably generally usually hopefully nice
"""
_GLUE = """
a an and are as at be been but by can do does each every for from had has have he if in into is it
its may more must no not of on one only or out own she so than that the their then there they this
to under up was what when where which who will with you your
"""
VAGUE = frozenset(_VAGUE.split())
GLUE = frozenset(_GLUE.split())
"""Words that sentences are held together by. A list of keywords has none."""


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "SKILL.md"
    metrics = judge(_text(path), path.resolve().parent, repository_of(FOLDER))
    print(json.dumps({"score": metrics.pop("score"), "metrics": metrics}))


def _text(path: Path) -> str:
    """What is there to score; a page that cannot be read is an empty one."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""


def judge(text: str, folder: Path, root: Path) -> dict[str, float]:
    """Every criterion, `substance` and the score.

    Args:
        folder: what links are relative to.
        root: the repository whose commands the page is about.
    """
    page = parse(text)
    found = {
        "front_matter": front_matter(page),
        "headings": headings(page),
        "sections": required_sections(page),
        "length": length(page),
        "sentences": sentence_lengths(page),
        "commands": commands(page, known_commands(root)),
        "fences": fences(page),
        "references": references(page, folder, root),
        "repetition": repetition(page),
        "tidy": tidy(text),
        "plain": plain(page),
    }
    substance = substance_of(page)
    total = sum(WEIGHTS[name] * value for name, value in found.items())
    found |= {"substance": substance, "score": total * substance}
    return {name: round(value, 4) for name, value in found.items()}


def front_matter(page: Page) -> float:
    """A name as installers take it; a description that says in its limits what and when."""
    name, description = page.front.get("name", ""), page.front.get("description", "")
    said = words(description)
    return _share(
        re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", name) is not None and len(name) <= 64,
        60 <= len(description) <= 300,
        "when" in said and len(set(said)) >= 0.7 * len(said),
        bool(said) and not VAGUE & set(said),
    )


def headings(page: Page) -> float:
    """One title at the top, no level left out, none twice, none without text."""
    if not page.sections:
        return 0.0
    levels = [section.level for section in page.sections]
    titles = [section.title.lower() for section in page.sections]
    first = next((line for line in page.lines[page.body :] if line.strip()), "")
    return _share(
        levels.count(1) == 1 and first.startswith("# "),
        all(after <= before + 1 for before, after in itertools.pairwise(levels)),
        len(set(titles)) == len(titles),
        all(page.own_prose(one) or _has_fence(page, one) for one in page.sections[1:]),
    )


def required_sections(page: Page) -> float:
    """Half for being there with words of their own on the page's subject, half for their order."""
    there = [_section(page, title) for title in SECTIONS]
    seen: set[str] = set()
    worth = [0.0 if one is None else _worth(page, one, seen) for one in there]
    starts = [one.start for one, value in zip(there, worth, strict=True) if one and value]
    pairs = list(itertools.pairwise(starts))
    in_order = sum(before < after for before, after in pairs) / (len(SECTIONS) - 1)
    return 0.6 * sum(worth) / len(SECTIONS) + 0.4 * in_order


def _section(page: Page, title: str) -> Section | None:
    return next((one for one in page.sections if one.title.lower() == title.lower()), None)


def _worth(page: Page, section: Section, seen: set[str]) -> float:
    """Of one section: fifteen words that stand in no section before it, some on the subject."""
    subject = {word[:5] for word in _subject(page)}
    own = words(page.own_prose(section))
    new = set(own) - seen
    seen |= set(own)
    if not {word[:5] for word in own} & subject:
        return 0.0
    block = 0.3 if _has_fence(page, section) else 0.0
    return min(1.0, len(own) / 20, len(new) / 12 + block)


def _subject(page: Page) -> list[str]:
    said = words(
        page.front.get("name", "").replace("-", " ") + " " + page.front.get("description", "")
    )
    return [word for word in said if len(word) > 2 and word not in GLUE | VAGUE]


def _has_fence(page: Page, section: Section) -> bool:
    return any(section.start < fence.start < section.end for fence in page.fences)


def length(page: Page) -> float:
    """150 to 600 words; less is too little to act on, more is not read."""
    count = len(words(page.prose))
    return min(1.0, count / 150) if count <= 600 else max(0.0, 1 - (count - 600) / 600)


def sentence_lengths(page: Page) -> float:
    """Each word over the limit costs; so does chopping everything into scraps."""
    counts = [len(words(one)) for one in sentences(page.prose)]
    if not counts:
        return 0.0
    over = sum(max(0, count - LONG_SENTENCE) for count in counts)
    scraps = sum(count < 4 for count in counts) / len(counts)
    return max(0.0, 1 - over / 60) * (1 - max(0.0, scraps - 0.2))


def commands(page: Page, known: dict[str, set[str]]) -> float:
    """Commands that exist with their options, three of them at least, in blocks for a shell."""
    good: set[str] = set()
    broken: set[str] = set()
    for call in calls(page):
        name = command_name(call, known)
        wrong = name is None or unknown_options(call, known[name])
        (broken if wrong or name is None else good).add(" ".join(call[:2]) if wrong else str(name))
    shell = {
        name
        for number in in_shell_fence(page)
        for name in [_called(page.lines[number], known)]
        if name
    }
    told = min(1.0, len(good) / 3) * 0.5 + min(1.0, len(shell) / 2) * 0.5
    crowd = min(1.0, 12 / max(1, len(good)))
    return max(0.0, told * crowd - 0.2 * len(broken))


def _called(line: str, known: dict[str, set[str]]) -> str | None:
    call = line.partition("orchestrator.py ")[2].split(" #")[0].split()
    return command_name(call, known) if call else None


def fences(page: Page) -> float:
    """Closed, named, not empty, no prompt in front; and no command left in running text."""
    if not page.fences:
        return 0.0
    faults = sum(not fence.closed for fence in page.fences)
    faults += sum(not fence.language for fence in page.fences)
    faults += sum(fence.end - fence.start < 2 for fence in page.fences)
    for number, line in enumerate(page.lines[page.body :], page.body):
        inside = page.fenced(number)
        faults += inside and line.startswith(("$ ", "> "))
        faults += not inside and line.strip().startswith("python ")
    return max(0.0, 1 - 0.25 * faults)


def references(page: Page, folder: Path, root: Path) -> float:
    """Two links that lead somewhere; each that does not costs a third."""
    targets = {link: (folder / link).exists() for link in links(page)}
    targets |= {name: (root / name).exists() for name in named_files(page)}
    broken = sum(not there for there in targets.values())
    leading = sum((folder / link).exists() for link in set(links(page)))
    return max(0.0, min(1.0, leading / 2) - 0.34 * broken)


def repetition(page: Page) -> float:
    """Each sentence or line of a block that stands there twice costs a quarter."""
    said = [" ".join(words(one)) for one in sentences(page.prose)]
    run = [page.lines[number].strip() for number in in_shell_fence(page)]
    counted = Counter(one for one in said + run if one)
    again = sum(count - 1 for count in counted.values())
    return max(0.0, 1 - 0.25 * again) if counted else 0.0


def tidy(text: str) -> float:
    """No trailing blanks, tabs, overlong lines or gaps; one line end at the end."""
    lines = text.split("\n")
    faults = sum(line != line.rstrip() for line in lines) + sum("\t" in line for line in lines)
    faults += sum(len(line) > LONG_LINE for line in lines if not line.startswith("description:"))
    faults += len(re.findall(r"\n{3,}", text)) + (not text.endswith("\n"))
    return max(0.0, 1 - 0.1 * faults) if text.strip() else 0.0


def plain(page: Page) -> float:
    """Each vague word costs a tenth."""
    said = words(page.prose)
    return max(0.0, 1 - 0.1 * sum(word in VAGUE for word in said)) if said else 0.0


def substance_of(page: Page) -> float:
    """Whether this is text at all, from 0 to 1: the weakest of four signs."""
    said = words(page.prose)
    if len(said) < 10:
        return 0.0
    counted = Counter(said)
    glue = sum(counted[word] for word in GLUE) / len(said)
    content = max((n for word, n in counted.items() if word not in GLUE | {"code"}), default=0)
    runs = Counter(zip(*(said[shift:] for shift in range(5)), strict=False))
    repeated = sum(count - 1 for count in runs.values()) / max(1, sum(runs.values()))
    return min(
        1.0,
        len(counted) / 80,
        _between(glue, 0.12, 0.27) if glue < 0.5 else 1 - _between(glue, 0.6, 0.8),
        1 - _between(content / len(said), 0.08, 0.2),
        1 - _between(repeated, 0.05, 0.35),
    )


def _between(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, a straight line between them."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _share(*held: bool) -> float:
    return sum(held) / len(held)


if __name__ == "__main__":
    main()
