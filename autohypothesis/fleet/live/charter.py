"""The charter: what a person wrote into program.md, and the limits in its prose.

Proposers read the page whole. What binds by code is its fenced block, the block of
research/steering.md, and the task. A limit that stands in the prose alone is named, so that nobody
relies on it: an amount of memory, of time or of parameters, and a constant or file that may not
change. Only a plain order is taken for one ("VRAM under 39 GB", "do not change DEPTH"): a warning
about a story of an earlier run would teach people to ignore warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["memory", "time", "parameters", "name"]
MEMORY, PARAMETERS = "peak_vram_mb", "num_params_M"
_NEAR = 80
"""Characters before an amount that may make it a limit."""
_NUMBER = r"(?<![\w.,-])(?P<number>\d[\d,]*(?:\.\d+)?)[ *_`]*-?"
_UNITS: dict[Kind, str] = {
    "memory": r"(?P<unit>[GM])(?:i?B|(?=\s+(?:of\s+)?(?:V?RAM|memory)))",
    "time": r"(?P<unit>h|m|s)(?:(?:ou)?rs?|in(?:ute)?s?|ec(?:ond)?s?)?",
    "parameters": r"(?:(?P<unit>[kMB]|thousand|million|billion)\b\s*)?(?(unit)|param(?:eter)?s)",
}
_AMOUNTS = {kind: re.compile(_NUMBER + unit + r"\b", re.I) for kind, unit in _UNITS.items()}
_SCALES: dict[Kind, dict[str, float]] = {
    "memory": {"g": 1024.0, "m": 1.0},
    "time": {"h": 3600.0, "m": 60.0, "s": 1.0},
    "parameters": {"": 1e-6, "k": 1e-3, "t": 1e-3, "m": 1.0, "b": 1e3},
}
"""First letter of a unit -> MiB, seconds, millions."""
_BEFORE = re.compile(
    r"(?:\b(?:under|below|at most|exceeds?|exceeding|within|max\.?|maximum|limit(?:ed)?|"
    r"cap(?:ped)?|ceiling|(?P<loose>budget|up to)|(?:less|fewer|lower) than|"
    r"fits? (?:on|in(?:to|side)?)|"
    r"(?:not|never)(?: go)? (?:over|above)|limit(?:s|ed)?\s[^.\d]{0,30}\bto|"
    r"(?:no|not|never)\s+(?:\w+\s+){0,2}(?:more|larger|higher|longer) than)(?!\w)|[<≤])"
    r"(?:\s+(?:of|is|at|to|the|be|a)\b|[:=*_` ])*[(\s]*$",
    re.I,
)
"""The end of what stands before the amount of a limit; `loose` words mean no limit of time."""
_AFTER = re.compile(
    r"[*_`,]*\s*(?:(?:of\s+)?(?:GPU\s+)?(?:V?RAM|memory)\s*)?[,(]?\s*"
    r"(?:at most|or (?:less|fewer)|max(?:imum)?\b|is the (?:limit|maximum|cap|ceiling))",
    re.I,
)
_AS_IT_IS = r"as (?:it|they) (?:is|are)"
_ORDER = re.compile(
    r"\b(?:do not|don['’]t|never|cannot|(?:must|should|may|can|shall|is|are)(?: not|n['’]t))\s+"
    r"(?:to\s+)?(?:be\s+)?"
    r"(?:changed?|modif(?:y|ied)|touch(?:ed)?|edit(?:ed)?|alter(?:ed)?|tuned?)\b"
    rf"|\b(?:stays?|remains?|keep|is)\b.{{0,60}}\b(?:fixed|unchanged|frozen|{_AS_IT_IS})\b"
    rf"|\bleave\b.{{0,60}}\b(?:alone|{_AS_IT_IS})\b",
    re.I | re.S,
)
_NAME = re.compile(r"`([^`\n]{1,80})`|\b([A-Z][A-Z0-9_]{2,})\b")
_NO_ORDER = re.compile(
    r"\b(?:was|were|(?<!be )used|took|peaked|reached|ran|had|has|we have|saw|seen|measured|"
    r"reported|tried|stayed|ended|needed|for example|e\.g|elsewhere|unless|until|available|"
    r"at once|together|same time|without|roughly|about|per (?:second|token|step))\b|\?",
    re.I,
)
"""Words of a sentence that tells, asks or allows."""
_OF_TIME = re.compile(
    r"\b(?:runs?|train\w*|experiments?|trials?|finish|takes?|time|long(?:er)?|wall|search|night)\b",
    re.I,
)
_OTHER_SIZES = re.compile(
    r"\b(?:disk|download|data ?sets?|data|corpus|text|checkpoints?|weights|files?|logs?|cache)\b",
    re.I,
)
_NOT_PROSE = re.compile(
    r"^[ ]{0,3}(`{3,20}|~{3,20})[^\n]*\n.*?(?:^[ ]{0,3}\1[ \t]*$|\Z)|<!--.*?(?:-->|\Z)", re.M | re.S
)
_END = re.compile(r"[.!?;](?=\s+[^\d\s]|[*_])|\n[ \t]*(?=\n|[-*+] |\d+[.)] |#|\||>)")


class ProseLimit(NamedTuple):
    """A limit as the prose has it."""

    line: int
    words: str
    kind: Kind
    amount: float = 0.0
    """MiB, seconds, or millions of parameters."""
    name: str = ""
    """A constant or a file that may not change."""


def prose_limits(text: str) -> Iterator[ProseLimit]:
    """Yield the limits in a page, without those in fenced blocks and comments."""
    text = _NOT_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    begin, first = 0, 1
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        sentence = text[begin:end]
        if not _NO_ORDER.search(sentence):
            for at, limit in _limits_in(sentence):
                yield limit._replace(line=first + sentence.count("\n", 0, at))
        begin, first = end, first + sentence.count("\n")


def _limits_in(sentence: str) -> Iterator[tuple[int, ProseLimit]]:
    """Yield place and limit, for each in a sentence."""
    words = " ".join(sentence.split()).strip("-*#>| ")[:120]
    is_of_model = re.search(r"\bparam(?:eter)?s?\b", sentence, re.I)
    for kind, pattern in _AMOUNTS.items():
        if kind == ("time" if is_of_model else "parameters"):
            continue
        if kind == "memory" and _OTHER_SIZES.search(sentence):
            continue
        if kind == "time" and not _OF_TIME.search(sentence):
            continue
        for match in pattern.finditer(sentence):
            before = _BEFORE.search(sentence, max(0, match.start() - _NEAR), match.start())
            if before is not None and before["loose"] and kind == "time":
                continue
            if before is not None or _AFTER.match(sentence, match.end()):
                scale = _SCALES[kind][(match["unit"] or "")[:1].lower()]
                amount = float(match["number"].replace(",", "")) * scale
                yield match.start(), ProseLimit(0, words, kind, amount)
    if _ORDER.search(sentence):
        for match in _NAME.finditer(sentence):
            yield match.start(), ProseLimit(0, words, "name", name=match[1] or match[2])
