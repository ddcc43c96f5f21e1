"""Names for experiments and hypotheses: given once, and never twice.

An id is a file name, a git ref and a word on a command line, so it is `[a-z0-9-]{1,63}`. It is
given under the lock `ids`, and an experiment's plan is written before the lock is let go: from
then on the name is taken, whichever process is killed when.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from autohypothesis.records.files import read_object, write_atomic, write_json
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.records.locks import hold

MAX_LENGTH = 63
_HASH = 6
"""Hexadecimal digits that tell two ids apart which look alike after they were shortened."""
_STATES = ("pending", "dispatched", "running", "done")


def slug(source: str, limit: int = MAX_LENGTH) -> str:
    """`source` as an id. One that had to be changed ends in a piece of its hash.

    So two foreign ids never meet in one, and the same one is always given the same id. Keep the
    original as `source_id`.
    """
    if ID.fullmatch(source) and len(source) <= limit:
        return source
    ascii_only = unicodedata.normalize("NFKD", source).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")
    digest = sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    stem = words[: limit - _HASH - 1].strip("-")
    return f"{stem}-{digest}" if stem else f"x-{digest}"


def baseline_id(tag: str) -> str:
    """The hypothesis that the unchanged script stands for."""
    return _with_suffix(f"baseline-{checked_id(tag)}", "")


def experiment_stem(hypothesis_id: str) -> str:
    """Return the prefix of the ids of a hypothesis' experiments: its id, if short enough."""
    return _with_suffix(checked_id(hypothesis_id), "-99999").removesuffix("-99999")


def _with_suffix(stem: str, suffix: str) -> str:
    return slug(stem, MAX_LENGTH - len(suffix)) + suffix


def allocate_hypothesis(layout: Layout, tag: str) -> str:
    """The next `h-<tag>-<NNNN>`. It is taken at once, whether or not a file follows."""
    stem = _with_suffix(f"h-{checked_id(tag)}", "-99999").removesuffix("-99999")
    with hold(layout, "ids", doing=f"a new id for a hypothesis of {tag}"):
        # The last numbers: their files may not be written yet. A damaged file counts as empty.
        memory = layout.lock("ids").with_suffix(".json")
        given = {name: n for name, n in read_object(memory).items() if isinstance(n, int)}
        number = max(_numbers(stem, _hypothesis_names(layout)), default=0)
        number = max(number, given.get(stem, 0)) + 1
        # After a power cut no process lives that was given a number and has not written its file.
        write_json(memory, {**given, stem: number}, durable=False)
    return f"{stem}-{number:04d}"


def allocate_experiment(
    layout: Layout,
    hypothesis_id: str,
    taken: Iterable[str] = (),
    *,
    plan: Callable[[str], BaseModel | Mapping[str, Any]],
    page: Callable[[str], str] | None = None,
) -> str:
    """The next `<hypothesis_id>-<n>`, with its plan written before anyone else can ask.

    Args:
        taken: ids seen elsewhere, `refs/experiments/` above all.
        plan: makes the plan of the id that it is given.
        page: makes the plan's page for people, `plans/<id>.md`.

    Raises:
        UnwritableError: the plan or its page cannot be written. As after what `plan` or `page`
            raises, nothing is left behind.
    """
    stem = experiment_stem(hypothesis_id)
    with hold(layout, "ids", doing=f"an id for an experiment of {hypothesis_id}"):
        known = [*taken, *names_in(layout.plans), *names_in(layout.runs)]
        number = max(_numbers(stem, known), default=0) + 1
        experiment_id = checked_id(f"{stem}-{number}")
        document, text = plan(experiment_id), page(experiment_id) if page else None
        # The plan before its page: recovery after a kill finds an attempt by its plan.
        try:
            write_json(layout.plan(experiment_id), document)
            if text is not None:
                write_atomic(layout.plan_page(experiment_id), text, durable=False)
        except BaseException:
            with suppress(OSError):  # what was wrong first is what is told
                forget_plan(layout, experiment_id)
            raise
    return experiment_id


def forget_plan(layout: Layout, experiment_id: str) -> None:
    """Remove a plan and its page, if they exist; a kill in between leaves the plan to find."""
    layout.plan_page(experiment_id).unlink(missing_ok=True)
    layout.plan(experiment_id).unlink(missing_ok=True)


def _numbers(stem: str, names: Iterable[str]) -> Iterator[int]:
    form = re.compile(re.escape(stem) + r"-(\d{1,9})")
    return (int(found[1]) for name in names if (found := form.fullmatch(name)))


def names_in(folder: Path) -> list[str]:
    """Return the ids in `folder`, of files and folders alike."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [name.removesuffix(".json").removesuffix(".md") for name in os.listdir(folder)]
    return []


def _hypothesis_names(layout: Layout) -> Iterator[str]:
    for state in _STATES:
        folder = layout.hypotheses(state)
        names = names_in(folder)
        yield from names
        if state in ("dispatched", "running"):
            for worker in names:
                yield from names_in(folder / worker)
