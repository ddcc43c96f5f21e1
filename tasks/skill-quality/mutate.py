"""Edits a skill page once, without a model: draws one operator and does what it says.

Reads the loop's JSON document on stdin, edits the artifact in place and prints what it did. The
same page, seed and trials give the same edit. It knows what good pages tend to have, and facts.md,
which is true; it does not know what a change is worth, and some of what it does is for the worse.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.dont_write_bytecode = True  # a mutator leaves nothing behind but its change

from page import (  # noqa: E402
    Page,
    Section,
    command_name,
    files_of,
    known_commands,
    links,
    parse,
    repository_of,
    sentences,
)

FOLDER = Path(__file__).resolve().parent
DRAWS = 60
FILLERS = ("basically", "just", "really", "very", "simply", "quite probably", "various", "usually")
JOINTS = (", and ", ", because ", ", so ", ", which ", ", or ", "; ", ", but ")
Edited = tuple[list[str], str]
"""The new lines, and what was done in a few words."""


@dataclass(frozen=True)
class Scene:
    """What an operator may look at."""

    page: Page
    random: random.Random
    root: Path
    folder: Path
    """The folder of the page, which its links are relative to."""

    @property
    def lines(self) -> list[str]:
        return list(self.page.lines)

    @cached_property
    def known(self) -> dict[str, set[str]]:
        return known_commands(self.root)

    @cached_property
    def facts(self) -> Page:
        return parse((FOLDER / "facts.md").read_text(encoding="utf-8"))

    @property
    def text_lines(self) -> list[int]:
        """Numbers of lines of running text."""
        return [
            number
            for number in range(self.page.body, len(self.page.lines))
            if not self.page.fenced(number)
            and self.page.lines[number].strip()
            and not self.page.lines[number].startswith("#")
        ]

    def facts_about(self, title: str) -> list[list[str]]:
        """Paragraphs and blocks of facts.md below `title`, each as its lines."""
        for section in self.facts.sections:
            if section.title == title:
                text = "\n".join(self.facts.lines[section.start + 1 : section.end])
                return [part.split("\n") for part in re.split(r"\n\n+", text.strip())]
        return []


def main() -> None:
    document = json.load(sys.stdin)
    seed = int(document.get("seed", os.environ.get("SEED", "0")))
    path = Path(document["artifacts"][0])
    text = path.read_text(encoding="utf-8")
    tried = {
        str(trial.get("description"))
        for trial in document.get("trials", ())
        if trial.get("status") != "keep"
    }
    edited = edit(text, seed, root=repository_of(FOLDER), folder=path.parent, tried=tried)
    if edited is None:
        print("nothing was found to change")
        return
    new, said = edited
    path.write_text(new, encoding="utf-8")
    print(said)


def edit(
    text: str, seed: int, *, root: Path, folder: Path, tried: Collection[str] = ()
) -> tuple[str, str] | None:
    """The page after one edit that is none of `tried`, and its description."""
    draw = random.Random(seed)
    scene = Scene(parse(text), draw, root, folder)
    for _ in range(DRAWS):
        operator = draw.choices(OPERATORS, WEIGHTS)[0]
        found = operator(scene)
        if found is None:
            continue
        new = "\n".join(found[0])
        if new != text and found[1] not in tried:
            return new, found[1]
    return None


# For the better, mostly.


def mend_command(scene: Scene) -> Edited | None:
    """A command that does not exist becomes one of the nearest that do."""
    wrong = []
    for number, line in enumerate(scene.page.lines):
        for found in re.finditer(r"orchestrator\.py ([a-z][\w-]*)", line):
            call = line[found.start(1) :].split()
            if command_name(call, scene.known) is None:
                wrong.append((number, found[1]))
    if not wrong:
        return None
    number, word = scene.random.choice(wrong)
    near = difflib.get_close_matches(word, scene.known, n=3, cutoff=0.4)
    if not near:
        return None
    name = scene.random.choices(near, [6, 2, 1][: len(near)])[0]
    lines = scene.lines
    lines[number] = lines[number].replace(f"orchestrator.py {word}", f"orchestrator.py {name}")
    return lines, f"the command {word} -> {name}"


def mend_link(scene: Scene) -> Edited | None:
    """A link that leads nowhere becomes one to a file of nearly that name."""
    broken = [link for link in links(scene.page) if not (scene.folder / link).exists()]
    if not broken:
        return None
    link = scene.random.choice(broken)
    # By name alone first: most broken links have the right name in the wrong folder.
    pages = {os.path.relpath(scene.root / one, scene.folder): one for one in files_of(scene.root)}
    likely = [one for one in pages if Path(one).suffix == Path(link).suffix]
    near = difflib.get_close_matches(link, likely, n=2, cutoff=0.5)
    if not near:
        return None
    target = scene.random.choices(near, [5, 1][: len(near)])[0]
    return [line.replace(f"]({link}", f"]({target}") for line in scene.lines], f"{link} -> {target}"


def split_sentence(scene: Scene) -> Edited | None:
    """A long sentence ends at one of its joints."""
    places = []
    for number in scene.text_lines:
        for joint in JOINTS:
            for found in re.finditer(re.escape(joint), scene.page.lines[number]):
                before, after = _around(scene.page.lines[number], found.start(), found.end())
                if len(before.split()) > 5 and len(after.split()) > 3:
                    places.append((number, found.start(), joint))
    if not places:
        return None
    number, at, joint = scene.random.choice(places)
    lines = scene.lines
    rest = lines[number][at + len(joint) :]
    opening = "This " if joint == ", which " else "Otherwise " if joint == ", or " else ""
    rest = opening + rest if opening else rest[:1].upper() + rest[1:]
    lines[number] = f"{lines[number][:at]}. {rest}"
    return lines, f"a sentence is split before {' '.join(rest.split()[:4])!r}"


def _around(line: str, start: int, end: int) -> tuple[str, str]:
    """The parts of the sentence around a joint."""
    before = re.split(r"[.!?]\s", line[:start])[-1]
    return before, re.split(r"[.!?](?:\s|$)", line[end:])[0]


def add_section(scene: Scene) -> Edited | None:
    """A section that facts.md has and the page has not, with some of what is true there."""
    there = {section.title.lower() for section in scene.page.sections}
    titles = [one.title for one in scene.facts.sections if one.level == 2]
    missing = [title for title in titles[:-1] if title.lower() not in there]
    if not missing:
        return None
    title = scene.random.choice(missing)
    parts = scene.facts_about(title)
    count = scene.random.randint(1, len(parts))
    chosen = sorted(scene.random.sample(range(len(parts)), count))
    block = [f"## {title}", ""]
    for index in chosen:
        block += [*parts[index], ""]
    at = _place_for(scene, title, titles)
    lines = scene.lines
    ahead = [] if at and not lines[at - 1].strip() else [""]
    return [*lines[:at], *ahead, *block, *lines[at:]], f"a section {title!r} of {count} paragraphs"


def _place_for(scene: Scene, title: str, order: list[str]) -> int:
    """Before the first section that facts.md has later; sometimes just anywhere."""
    sections = [one for one in scene.page.sections if one.level > 1] or scene.page.sections
    if sections and scene.random.random() < 0.2:
        return scene.random.choice(sections).start
    for section in scene.page.sections:
        if section.title in order and order.index(section.title) > order.index(title):
            return section.start
    lines = scene.page.lines
    return len(lines) - 1 if lines[-1] == "" else len(lines)


def fill_section(scene: Scene) -> Edited | None:
    """One more true thing in a section that facts.md knows something about."""
    known = [one for one in scene.page.sections if scene.facts_about(one.title)]
    if not known:
        return None
    section = scene.random.choice(known)
    present = "\n".join(scene.page.lines)
    new = [p for p in scene.facts_about(section.title) if "\n".join(p) not in present]
    if not new:
        return None
    part = scene.random.choice(new)
    at = _last_line(scene.page, section)
    lines = scene.lines
    said = " ".join(" ".join(part).replace("```sh", "").split()[:5])
    return [*lines[:at], "", *part, *lines[at:]], f"{section.title!r} also says {said!r}"


def _last_line(page: Page, section: Section) -> int:
    """Behind the last line of a section that is not blank."""
    at = section.end
    while at > section.start + 1 and not page.lines[at - 1].strip():
        at -= 1
    return at


def rename_section(scene: Scene) -> Edited | None:
    """A heading that nobody looks for becomes one that readers know."""
    titles = [one.title for one in scene.facts.sections if one.level == 2][:-1]
    there = {one.title.lower() for one in scene.page.sections}
    free = [title for title in titles if title.lower() not in there]
    own = [one for one in scene.page.sections if one.level > 1 and one.title not in titles]
    if not free or not own:
        return None
    section, title = scene.random.choice(own), scene.random.choice(free)
    lines = scene.lines
    lines[section.start] = f"{'#' * section.level} {title}"
    return lines, f"the heading {section.title!r} -> {title!r}"


def order_sections(scene: Scene) -> Edited | None:
    """The sections of the second level in the order of facts.md."""
    order = [one.title for one in scene.facts.sections]
    blocks = _blocks(scene.page)
    if len(blocks) < 2:
        return None
    rank = {title: index for index, title in enumerate(order)}
    ranks = [rank.get(scene.page.sections[0].title, 0)]
    for block in blocks:  # an unknown section stays behind the one before it
        ranks.append(rank.get(block[0].lstrip("# "), ranks[-1]))
    pairs = sorted(zip(ranks[1:], range(len(blocks)), strict=True))
    first = len(scene.page.lines) - sum(len(block) for block in blocks)
    return _joined(scene.lines[:first], [blocks[at] for _, at in pairs]), "sections in order"


def _blocks(page: Page) -> list[list[str]]:
    """The second level's sections with all below them, as they stand to the end of the page."""
    starts = [one.start for one in page.sections if one.level == 2]
    ends = [*starts, len(page.lines)][1:]
    return [page.lines[start:end] for start, end in zip(starts, ends, strict=True)]


def _joined(head: list[str], blocks: list[list[str]]) -> list[str]:
    """One blank line between blocks, one line end at the end."""
    lines = list(head)
    for block in blocks:
        while block and not block[-1].strip():
            block = block[:-1]
        lines += [*block, ""]
    return lines


def level_headings(scene: Scene) -> Edited | None:
    """The first heading is the title; the others leave no level out."""
    lines, before = scene.lines, 0
    for section in scene.page.sections:
        level = 1 if before == 0 else max(2, min(section.level, before + 1))
        lines[section.start] = f"{'#' * level} {section.title}"
        before = level
    return (lines, "headings without gaps") if lines != scene.page.lines else None


def name_for_installers(scene: Scene) -> Edited | None:
    """The name in lower case and with hyphens."""
    name = scene.page.front.get("name", "")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug or slug == name:
        return None
    return [
        f"name: {slug}" if number < scene.page.body and line.startswith("name:") else line
        for number, line in enumerate(scene.lines)
    ], f"the name {name!r} -> {slug!r}"


def describe(scene: Scene) -> Edited | None:
    """Another description."""
    choices = [" ".join(part) for part in scene.facts_about("Descriptions")]
    if "description" not in scene.page.front:
        return None
    said = scene.random.choice(choices)
    return [
        f"description: {said}"
        if number < scene.page.body and line.startswith("description:")
        else line
        for number, line in enumerate(scene.lines)
    ], f"the description {said[:40]!r}"


def drop_filler(scene: Scene) -> Edited | None:
    """A word that says nothing goes."""
    pattern = re.compile(rf"\b(?:{'|'.join(FILLERS)})\b ")
    places = [number for number in scene.text_lines if pattern.search(scene.page.lines[number])]
    if not places:
        return None
    number = scene.random.choice(places)
    lines = scene.lines
    found = scene.random.choice(list(pattern.finditer(lines[number])))
    lines[number] = lines[number][: found.start()] + lines[number][found.end() :]
    return lines, f"without {found[0].strip()!r} in line {number + 1}"


def drop_repeated(scene: Scene) -> Edited | None:
    """The second of two equal lines goes."""
    seen: set[str] = set()
    again = []
    for number in range(scene.page.body, len(scene.page.lines)):
        line = scene.page.lines[number].strip()
        if line and not line.startswith("```"):
            if line in seen:
                again.append(number)
            seen.add(line)
    if not again:
        return None
    number = scene.random.choice(again)
    lines = scene.lines
    del lines[number]
    return lines, f"line {number + 1} goes, it stood there before"


def strip_blanks(scene: Scene) -> Edited | None:
    """No trailing blanks, no gaps of more than one line, one line end at the end."""
    text = "\n".join(line.rstrip() for line in scene.page.lines).rstrip("\n") + "\n"
    text = re.sub(r"\n{3,}", "\n\n", text)
    return (text.split("\n"), "no trailing blanks") if text.split("\n") != scene.lines else None


def fence_command(scene: Scene) -> Edited | None:
    """A command in running text gets a block of its own; a block without a language gets one."""
    lines = scene.lines
    bare = [fence.start for fence in scene.page.fences if not fence.language]
    loose = [number for number in scene.text_lines if lines[number].startswith("python ")]
    if not bare and not loose:
        return None
    at = scene.random.choice(bare + loose)
    if at in bare:
        lines[at] = "```sh"
        return lines, "a block is for a shell"
    return [*lines[:at], "```sh", lines[at], "```", *lines[at + 1 :]], "a command in a block"


def wrap_lines(scene: Scene) -> Edited | None:
    """Paragraphs are broken at about 90 characters."""
    lines: list[str] = []
    text = set(scene.text_lines)
    for number, line in enumerate(scene.page.lines):
        lines += _wrapped(line) if number in text else [line]
    return (lines, "lines are wrapped") if lines != scene.page.lines else None


def _wrapped(line: str) -> list[str]:
    indent = "  " if re.match(r"\s*(?:[-*]|\d+\.)\s", line) else ""
    parts: list[str] = []
    for word in line.rstrip().split(" "):
        if parts and len(parts[-1]) + 1 + len(word) <= 90:
            parts[-1] += f" {word}"
        else:
            parts.append(indent + word if parts else word)
    return parts


# For the worse, mostly; what any writer does on a bad day.


def drop_paragraph(scene: Scene) -> Edited | None:
    """A line of text or an item goes."""
    if len(scene.text_lines) < 3:
        return None
    number = scene.random.choice(scene.text_lines)
    lines = scene.lines
    said = " ".join(lines[number].split()[:4])
    del lines[number]
    return lines, f"without the line {said!r}"


def say_it_again(scene: Scene) -> Edited | None:
    """A sentence is said a second time, at the end."""
    said = sentences(scene.page.prose)
    if not said:
        return None
    again = scene.random.choice(said)
    return _joined(scene.lines, [[again]]), f"once more: {' '.join(again.split()[:4])!r}"


def join_sentences(scene: Scene) -> Edited | None:
    """Two sentences become one."""
    places = [number for number in scene.text_lines if ". " in scene.page.lines[number]]
    if not places:
        return None
    number = scene.random.choice(places)
    lines = scene.lines
    before, _, after = lines[number].partition(". ")
    lines[number] = f"{before}, and {after[:1].lower()}{after[1:]}"
    return lines, f"two sentences are one in line {number + 1}"


def add_filler(scene: Scene) -> Edited | None:
    """A word that says nothing is put somewhere."""
    if not scene.text_lines:
        return None
    number = scene.random.choice(scene.text_lines)
    lines = scene.lines
    parts = lines[number].split(" ")
    filler = scene.random.choice(FILLERS)
    parts.insert(scene.random.randint(1, len(parts)), filler)
    lines[number] = " ".join(parts)
    return lines, f"{filler!r} in line {number + 1}"


def swap_sections(scene: Scene) -> Edited | None:
    """Two sections change places."""
    blocks = _blocks(scene.page)
    if len(blocks) < 2:
        return None
    one, other = scene.random.sample(range(len(blocks)), 2)
    first = len(scene.page.lines) - sum(len(block) for block in blocks)
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return _joined(scene.lines[:first], blocks), f"sections {one + 1} and {other + 1} change places"


Operator = Callable[[Scene], Edited | None]
BETTER: tuple[Operator, ...] = (
    mend_command, mend_link, split_sentence, add_section, fill_section, rename_section,
    order_sections, level_headings, name_for_installers, describe, drop_filler, drop_repeated,
    strip_blanks, fence_command, wrap_lines,
)  # fmt: skip
WORSE: tuple[Operator, ...] = (
    drop_paragraph, say_it_again, join_sentences, add_filler, swap_sections,
)  # fmt: skip
OPERATORS = (*BETTER, *WORSE)
WEIGHTS = (*(3 for _ in BETTER), *(2 for _ in WORSE))


if __name__ == "__main__":
    main()
