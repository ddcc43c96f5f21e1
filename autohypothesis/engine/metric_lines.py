"""Finds metrics in the lines of a log, in the ways in which people print them.

A metric has three forms. The published one is a line `val_bpb: 1.0`. A *named* one is the same name
anywhere in a line: after words or a logger's prefix, with `=`, in JSON, a dictionary or a table. In
an *alike* one the name is written in another way: `Val BPB 1.0`, `eval/val_bpb=1.0`. Of one log the
strongest form counts and the others are progress, so a figure of each epoch spoils no summary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

MAX_LINE = 4096  # characters of one line that are looked at
MAX_VALUES = 8
"""Different values of one metric that are remembered."""
WINDOW = 1 << 20
"""Characters at the end of a log in which metrics are listed."""

Direction = Literal["minimize", "maximize"]
_FORMS = 4
_MAX_NUMBER = 40  # characters of a number; longer ones are nonsense and slow to convert
_ABSURD = 1e18
_NUMBER = (
    r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
    r"|nan|[-+]?inf(?:inity)?"
)
_UNITS = re.compile(rf"({_NUMBER})\s*(?:ms|s|%|tok/s)?$", re.IGNORECASE)
_UNIT = r"(?:[nmu\u00b5]?s|secs?|min|h|bits?|bp[bc]|nats?|dB|[KMGT]i?B|(?:tok|it)/s|fps)(?!\w)"
"""A unit that may follow a number without a space."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_TYPESET_SPACE = re.compile(r"(?<!\d)[\u00a0\u2007\u2009\u202f]")  # else it parts thousands
_PAIR = re.compile(r"([^\W\d]\w{0,63}):(?!=)[ \t]*(\S.*)")
_QUOTES = r"[\"'`*]{0,3}"
_VALUE = (
    rf"{_QUOTES}(?:[A-Za-z_][\w.]{{0,40}}\()?"  # tensor(
    r"(?:\[(?=[^],]{1,64}\]))?"  # [1.0], and not the first of several
    rf"({_NUMBER})(?:(?={_UNIT})|"
    r"(?!\w|\+(?!/)|[-./:']\w|[,\u00a0\u2007\u2009\u202f]\d|\s{0,9}(?:[-=]>|→)|"
    r"\s?[×·x*]\s?10(?:\^|\*\*|[⁻⁰¹²³⁴-⁹])))"
)
_PARTED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:[.,]\d*)?\s*$")
"""Thousands that blanks part, behind a sign and to the end of a line: no number, and not `1`."""
_PUBLISHED_VALUE = re.compile(_VALUE, re.IGNORECASE)
_WORD = r"[^\W\d]\w{0,63}(?:[/@.-]\w{1,64}){0,4}"
_TO_VALUE = (
    rf"(?:[ \t.]{{0,60}}(?::=|==|[:=|│┃：≈~]|[-=]>|→|(?<=[\"']),){_QUOTES}"
    rf"|[ \t]?\.{{3,60}}|([ \t]){{1,60}})[ \t]{{0,60}}{_VALUE}"
)
_WORDS = re.compile(rf"{_WORD}(?: {_WORD}){{0,2}}")
_IN_LINE = re.compile(
    rf"(?<![\w/@.-])({_WORDS.pattern})[\"'`*\]]{{0,3}}"  # val_bpb, 'val/bpb', Val BPB
    rf"(?P<note>[ \t]{{0,2}}[(\[][^()\[\]]{{1,24}}[)\]])?"  # (bits)
    rf"{_TO_VALUE}",
    re.IGNORECASE,
)
_NAMING = re.compile(
    r"[ \t]*[(\[](?!\W*(?:epoch|ep|step|iter\w*|it|batch|round|fold)?\W*\d)(?!.*\d[.:/]\d).*"
)
"""A note that may tell two metrics apart, `(top-1)`, and is no count of epochs or seconds."""
_SPELLED = re.compile(r"[_/@.]|[a-z0-9][A-Z]")
_WORD_FOLLOWS = re.compile(r"[ \t]+[A-Za-z]")
_FILLERS = {"is", "was", "of", "at", "to", "info", "debug", "warning", "root", "wandb"}
_OF_ANOTHER_RUN = {
    "best", "lowest", "highest", "min", "max", "minimum", "maximum", "target", "goal", "previous",
    "prev", "baseline", "reference", "expected",
}  # fmt: skip
"""Words before a name that make it another figure than the run's own."""
_HELD_OUT = re.compile(r"(?:^|_)(?:val|valid|validation|eval|test|dev|heldout)(?:_|$)")
_SCORE = re.compile(
    r"(?:^|_)(?:bpb|bpc|loss|ppl|perplexity|acc|accuracy|auc|f1|score|error|err|rmse|mse|mae|r2|bleu"
    r"|rouge\w*|map|iou|reward|wer|nll|logloss)\d*(?:_|$)"
)
_GROWS = re.compile(
    r"(?:^|_)(?:acc|accuracy|auc|f1|score|r2|bleu|rouge\w*|map|iou|reward|precision|recall)\d*(?:_|$)"
)


class PrintedMetric(NamedTuple):
    """A metric as a log holds it.

    Attributes:
        name: as `objective.metric` of a task may name it: `val_loss`, `eval/acc`.
        values: the different finite values, in the order in which each was printed last, so
            that `values[-1]` is the last one; eight at most. Two or more mean that it is printed
            more than once in a run, and that the task has to say `scorer: {parse: {take: last}}`.
        direction: whether a lower or a higher value is better, as far as the name tells.
    """

    name: str
    values: tuple[float, ...]
    direction: Direction


class Occurrence(NamedTuple):
    """A metric in a line: its form (0 is the strongest), its number if it is one, and the text."""

    form: int
    value: float | None
    text: str


class MetricValues:
    """What the lines of a log say of one metric, in its strongest form.

    Attributes:
        hint: characters that every line with the metric has, in lower case.
        count: how often it was printed.
        texts: its different values -> how each was written, the last one last; None for what is no
            plausible number. Of many, the lowest, the highest and the last ones.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        words = re.findall(r"[a-z0-9]+", metric.lower(), re.ASCII)
        self.hint = words[-1] if words and metric.isascii() else ""
        self.count = 0
        self.texts: dict[float | None, str] = {}
        self._form = _FORMS

    @property
    def values(self) -> list[float | None]:
        """Return the different values, the last one last."""
        return list(self.texts)

    def take(self, line: str) -> None:
        """Take a line into account."""
        if self.hint not in line.lower():
            return
        for found in occurrences(line, self.metric):
            if found.form < self._form:
                self._form, self.count, self.texts = found.form, 0, {}
            if found.form == self._form:
                self.count += 1
                self.texts.pop(found.value, None)
                self.texts[found.value] = found.text
                if len(self.texts) > MAX_VALUES:
                    del self.texts[self._least_telling()]

    def _least_telling(self) -> float | None:
        """Return the oldest value that is neither the lowest nor the highest."""
        numbers = [value for value in self.texts if value is not None]
        extremes = (min(numbers, default=None), max(numbers, default=None))
        return next(value for value in self.texts if value not in extremes)


def parse_number(text: str) -> float | None:
    """Return a finite number under 1e18, commas and a unit allowed; None for anything else."""
    text = text.strip()
    match = _UNITS.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if match is None:
        return None
    value = float(match[1].replace(",", ""))
    return value if math.isfinite(value) and abs(value) < _ABSURD else None


def lines_of(text: str) -> list[str]:
    """Return the whole lines of `text`, without colours, and each cut after 4,096 characters."""
    whole = re.split(r"[\r\n]", text)[:-1]  # what follows the last line end is no line yet
    lines = [without_escapes(line[:MAX_LINE]).rstrip() for line in whole]
    return [line if line.isascii() else _as_typed(line) for line in lines]


def _as_typed(line: str) -> str:
    """Return a line with the spaces and minus signs of a keyboard in place of a typesetter's."""
    return _TYPESET_SPACE.sub(" ", line).replace("\u2212", "-")


def without_escapes(line: str) -> str:
    """Return a line without the sequences that colour it or move the cursor."""
    return _ESCAPES.sub("", line) if "\x1b" in line else line


def published_pair(line: str) -> tuple[str, str] | None:
    """Return name and text of a line `name: text`; None for any other line."""
    pair = _PAIR.match(line)
    return (pair[1], pair[2]) if pair else None


def pairs_in(line: str) -> list[tuple[str, str]]:
    """Return name and number, as text, of everything in a line that reads like a metric."""
    return _listed(_found_in(line))


def occurrences(line: str, metric: str) -> list[Occurrence]:
    """Return where `metric` is in a line that has no colours."""
    pair = published_pair(line)
    if pair is not None and pair[0] == metric:
        number = None if _PARTED.match(pair[1]) else _PUBLISHED_VALUE.match(pair[1])
        return [Occurrence(0, parse_number(number[1]) if number else None, pair[1])]
    if not _WORDS.fullmatch(metric):
        literal = [(1 if at.start() else 0, at[2]) for at in _literal(metric).finditer(line)]
        return [Occurrence(form, parse_number(text), text) for form, text in literal]
    found = ((_form_of(words, metric), note, text) for words, note, text in _found_in(line))
    return [
        # `accuracy (top-5)` is another metric than `accuracy`, where a log has both.
        Occurrence(max(form, 2) if _NAMING.fullmatch(note) else form, parse_number(text), text)
        for form, note, text in found
        if form
    ]


def find_metrics(text: str) -> list[PrintedMetric]:
    """Return the metrics that a log holds, the likeliest objective first.

    A name with `val`, `eval` or `test` in it comes first, then what is called a loss, an accuracy
    or a score, then the rest in the order of the log. The last 1 MiB of `text` is read; a last line
    that does not end counts as well. Numbers that are not finite are left out. A name that is
    printed with several notes, `accuracy (top-1)` and `accuracy (top-5)`, is a metric with each.
    """
    values: dict[str, dict[float, None]] = {}
    lines = lines_of(text[-WINDOW:] + "\n")
    for name, written in _listed(found for line in lines for found in _found_in(line)):
        value = parse_number(written)
        if value is not None and (name in values or len(values) < 1000):
            known = values.setdefault(name, {})
            known.pop(value, None)
            known[value] = None
    listed = [
        PrintedMetric(name, tuple(known)[-MAX_VALUES:], direction_of(name))
        for name, known in values.items()
    ]
    return sorted(listed, key=lambda metric: _rank(metric.name))


def direction_of(name: str) -> Direction:
    """Return whether a lower or a higher value is better, as far as the name tells."""
    return "maximize" if _GROWS.search(_alike(name)) else "minimize"


def is_likely_objective(metric: PrintedMetric) -> bool:
    """Return whether the name is that of a loss or a score, and not of a setting or a counter."""
    return _rank(metric.name) < _LEAST


_LEAST = 2


def _rank(name: str) -> int:
    plain = _alike(name)
    return _LEAST if not _SCORE.search(plain) else 0 if _HELD_OUT.search(plain) else 1


def _listed(found: Iterable[tuple[list[str], str, str]]) -> list[tuple[str, str]]:
    """Return name and number of each; a name has its note, where that tells metrics apart."""
    named = [(_listed_name(words), words, note, text) for words, note, text in found]
    notes: dict[str, set[str]] = {}
    for name, _, note, _ in named:
        notes.setdefault(name, set()).add(note if _NAMING.fullmatch(note) else "")
    listed = []
    for name, words, note, text in named:
        is_told_apart = 1 < len(notes[name]) <= MAX_VALUES and _NAMING.fullmatch(note)
        listed.append((" ".join(_kept(words)) + note if is_told_apart else name, text))
    return listed


def _found_in(line: str) -> Iterator[tuple[list[str], str, str]]:
    """Yield the words before each number of a line, the note after them, and the number."""
    for match in _IN_LINE.finditer(line[:MAX_LINE]):
        words, text = match[1].split(" "), match[4]
        while len(words) > 1 and words[-1].lower() in _FILLERS:
            words.pop()
        if match[3] and text.isdecimal() and _WORD_FOLLOWS.match(line, match.end()):
            continue  # `val_bpb of 10 files`: without a sign between them, a count
        if not match[3] and _PARTED.match(line, match.start(4)):
            continue
        yield words, match["note"] or "", text


def _form_of(words: list[str], metric: str) -> int:
    """Return 1 where the last words are the metric's name, 2 where they are alike, 3 where they are
    so in a group (`eval/val_bpb`), else 0."""
    for begin in range(len(words)):
        name, wanted = " ".join(words[begin:]), _alike(metric)
        is_whole = _alike(name) == wanted
        if is_whole or _alike(re.split(r"[/.]", name)[-1]) == wanted:
            is_other = begin > 0 and words[begin - 1].lower() in _OF_ANOTHER_RUN
            return 0 if is_other else 3 if not is_whole else 1 if name == metric else 2
    return 0


def _listed_name(words: list[str]) -> str:
    """Return a name of these words under which `occurrences` finds the number again."""
    *before, last = _kept(words)
    if _SPELLED.search(last):
        return "_".join([*map(str.lower, before), last])
    return "_".join([*before, last]).lower() if before else last


def _kept(words: list[str]) -> list[str]:
    """Return the words of a name, as they are written."""
    if _SPELLED.search(words[-1]):
        is_other = len(words) > 1 and words[-2].lower() in _OF_ANOTHER_RUN
        return words[-2:] if is_other else words[-1:]
    return [word for word in words[-2:] if word.lower() not in _FILLERS] or words[-1:]


@lru_cache(maxsize=64)
def _literal(metric: str) -> re.Pattern[str]:
    """Return what finds a name that is no words: `accuracy (top-1)`, `R^2`."""
    return re.compile(rf"(?<![\w/@.-]){re.escape(metric)}[\"'`*]{{0,3}}{_TO_VALUE}")


@lru_cache(maxsize=4096)
def _alike(name: str) -> str:
    """Return a name so that names that differ in case and separators only are the same."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # valBpb
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")
