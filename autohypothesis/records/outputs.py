"""Ownership of the files that we write in the root of the user's repository.

What we did not write stays as it is. Ours is known by what it holds: rows of experiments that are
known here, lines of our iterations, a mark in the picture. What the repository tracks is never
ours: writing it would make the user's tree dirty.

A line that people write into the ledger or into results.tsv becomes a bundle of its own: no run
attests its number, and it waits for no decision. An edit of a derived file, which is made from
others, has no effect: it goes to `research/conflicts/`, with the commands to use instead in
`<name>.reason`. The content written last is kept beside the file as `.NAME`, so that an edit is
seen by its content.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from autohypothesis.errors import FleetError, RecordError
from autohypothesis.installation import as_called
from autohypothesis.plain import plain, table_text
from autohypothesis.records import bundles, ids, jsonl
from autohypothesis.records.bundles import decision_documents
from autohypothesis.records.checkouts import is_entry_of
from autohypothesis.records.files import (
    kind_of,
    load_or_none,
    read_bytes,
    remove_stale_temporaries,
    write_atomic,
    write_json,
    write_new,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import LIMIT
from autohypothesis.records.rows import DECIDED, MB_PER_GB, VALUELESS, real
from autohypothesis.records.tables import COLUMNS
from autohypothesis.schema import Metrics, Plan, PlannedHypothesis, Result, finite, now
from autohypothesis.system import rename_exclusive

PICTURE_MARK = "autohypothesis"
"""`Software` in the pictures that we draw."""
_HEAD = 4_096
_OUR_LOCKS = ("fleet=", "worker=", "pid=", "initializing")
"""Beginnings of the reason of a worktree's lock that we, or a killed git, made."""


def refuse_foreign_ledger(repository: Repository, layout: Layout) -> None:
    """See that the ledger can be written, before a run is spent.

    Raises:
        FleetError: something that is not ours has its name.
    """
    _refuse(
        repository,
        layout.ledger,
        lambda content: not ledger_lines(content, _known(layout)).foreign,
    )
    _refuse_no_folder(layout.worktrees)
    _refuse_no_folder(layout.research)


def refuse_foreign_lines(repository: Repository, layout: Layout) -> None:
    """The same of the lines of a task's iterations.

    Raises:
        FleetError: something that is not ours has its name.
    """
    _refuse_no_folder(layout.task_results.parent)
    _refuse(
        repository,
        layout.task_results,
        lambda content: any(
            {"task_id", "iteration_id", "tag"} <= record.keys()
            for record in jsonl.parse(content)[0]
        ),
    )


def worktree_obstacle(repository: Repository, path: Path, branch: str = "") -> str:
    """Return what lies at `path` instead of a worktree of ours; empty when nothing else does.

    Ours are those that we locked, whose entry is gone, or that are on `branch`.
    """
    if not os.path.lexists(path):
        return ""
    if path.is_symlink() or not path.is_dir():
        return "a link" if path.is_symlink() else "a file"
    listed = repository.worktree_at(path)
    if listed is None:
        ours = not any(path.iterdir()) or is_entry_of(repository.common_dir, path)
    else:
        ours = (listed.lock_reason or "").startswith(_OUR_LOCKS)
        ours = ours or bool(branch and listed.branch == f"refs/heads/{branch}")
    return "" if ours else "a folder that is no worktree of ours"


def _known(layout: Layout) -> set[str]:
    """Ids of experiments that left anything here."""
    known = set(map(ids.slug, (*ids.names_in(layout.runs), *ids.names_in(layout.plans))))
    with suppress(RecordError):
        known |= {decision["experiment_id"] for decision in decision_documents(layout)[0]}
    return known


def _refuse(repository: Repository, path: Path, is_ours: Callable[[bytes], bool]) -> None:
    away = path.with_name(f"{path.stem}.mine{path.suffix}")
    there, moved = shlex.quote(str(path)), shlex.quote(str(away))
    mode = os.lstat(path).st_mode if os.path.lexists(path) else stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise FleetError(
            f"{path} is {kind_of(mode)}, no file of ours", hint=f"move it away: mv {there} {moved}"
        )
    if repository.tracks(path):
        raise FleetError(
            f"{path} is tracked by the repository, so it cannot be written here",
            hint=f"rename it: git mv {there} {moved}, or take it out: git rm --cached {there}",
        )
    with suppress(FileNotFoundError):
        content = read_bytes(path, LIMIT)
        if content and not is_ours(content):
            raise FleetError(
                f"{path} is not ours: no line of it tells of a run here",
                hint=f"move it away: mv {there} {moved}",
            )


def _refuse_no_folder(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise FleetError(
            f"{path} is no folder, and we need one of that name",
            hint=f"move it away: mv {shlex.quote(str(path))} {shlex.quote(f'{path}.mine')}",
        )


def picture_place(layout: Layout) -> Path:
    """Return the path of the picture: in the root, or under research/ where the name is taken."""
    path = layout.progress_png
    taken = layout.aggregate_progress_png
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return taken
        with path.open("rb") as file:
            if f"Software\0{PICTURE_MARK}".encode() not in file.read(_HEAD):
                return taken
    return taken if Repository(layout.root).tracks(path) else path


BY_HAND_WORKER = "by-hand"
FAILED = (*VALUELESS, "failed", "artifact_invalid")
MOST = 2_000
"""Lines that are taken in at once; a longer table is the user's data, no note of a run."""


_ROW = {"id", "ordinal", "execution_status", "platform_key", "confirmation"}
"""Keys of every row that a version of ours wrote."""


class ManualLine(NamedTuple):
    """A line that we did not write."""

    source: str
    """The name of its file."""
    text: str
    fields: Mapping[str, Any]
    """The values, by column of the ledger."""


class LedgerLines(NamedTuple):
    """The lines of experiments.jsonl, sorted."""

    by_hand: list[ManualLine]
    ours: dict[str, bytes]
    """The lines about experiments that are known here, by their ids."""
    damaged: int = 0
    """Lines that are no JSON objects."""
    gone: int = 0
    """Rows as we write them, of experiments that are not known any more."""

    @property
    def foreign(self) -> bool:
        """Whether it is another file than ours, which has our name."""
        return bool(self.by_hand or self.damaged or self.gone) and not self.ours


def ledger_lines(content: bytes, known: Container[str]) -> LedgerLines:
    """The lines of a ledger, by whether they tell of an experiment in `known`."""
    found: list[ManualLine] = []
    ours: dict[str, bytes] = {}
    damaged = gone = 0
    for line in content.splitlines(keepends=True):
        if not line.strip():
            continue
        try:
            value = from_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            damaged += line.endswith(b"\n")  # else a power cut tore it: its row is made again
        elif isinstance(value.get("id"), str) and (name := ids.slug(value["id"])) in known:
            ours[name] = line
        elif value.keys() >= _ROW:
            gone += 1
        else:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            found.append(ManualLine("experiments.jsonl", text, value))
    return LedgerLines(found, ours, damaged, gone)


def table_lines(texts: Iterable[str]) -> Iterator[ManualLine]:
    """Lines of a results.tsv, those of the published format."""
    for text in texts:
        cells = dict(zip(COLUMNS, text.split("\t"), strict=False))
        if len(text) < 4_000 and cells.get("status") in DECIDED:
            yield ManualLine("results.tsv", text, {**cells, "peak_vram_gb": cells["memory_gb"]})


def is_half_taken(layout: Layout, name: str) -> bool:
    """Return whether a kill cut off the taking in of a line: its result is written last."""
    if layout.run(name).result.exists():
        return False
    plan = load_or_none(Plan, layout.plan(name))
    return plan is not None and plan.worker_id == BY_HAND_WORKER


def take_in(layout: Layout, tag: str, lines: Iterable[ManualLine]) -> list[str]:
    """Make a bundle of each line that has none yet; return the ids of the new ones.

    Raises:
        RecordError: the disk is full.
    """
    taken = []
    for line in lines:
        digest = sha256(line.text.encode("utf-8", "replace")).hexdigest()[:12]
        given, own = line.fields.get("id"), line.fields.get("tag")
        is_named = isinstance(given, str) and ID.fullmatch(given)
        name = str(given) if is_named else f"{BY_HAND_WORKER}-{digest}-1"
        is_known = layout.run(name).folder.exists() or layout.plan(name).exists()
        if is_known and not is_half_taken(layout, name):
            continue
        title = table_text(str(line.fields.get("description") or "")) or f"a line of {line.source}"
        plan = Plan(
            experiment_id=name,
            created_at=now(),
            based_on_commit="",
            worker_id=BY_HAND_WORKER,
            tag=own if isinstance(own, str) and ID.fullmatch(own) else tag,
            hypothesis=PlannedHypothesis(
                hypothesis_id=name.rpartition("-")[0] or name, title=title
            ),
        )
        run = layout.run(name)
        write_json(layout.plan(name), plan)
        write_atomic(run.log, plain(line.text) + "\n", durable=False)
        bundles.write_result(run, _result(line, title))
        taken.append(name)
    return taken


def _result(line: ManualLine, title: str) -> Result:
    fields = line.fields
    metric = fields.get("metric_name")
    metric = table_text(metric)[:64] if isinstance(metric, str) and metric else "val_bpb"
    status = table_text(str(fields.get("status") or ""))[:40]
    stated = fields.get("metric_value", fields.get(metric))
    value = None if status in FAILED else real(stated, metric)
    memory = finite(fields.get("peak_vram_gb"))
    said = f"written into {line.source} by hand" + (f" as {status}" if status else "")
    return Result(
        status="failed" if value is None else "completed",
        recorded_at=now(),
        commit=table_text(str(fields.get("commit") or ""))[:64],
        title=title,
        outcome=said,
        failure_detail=said if value is None else "",
        log_tail=plain(line.text)[-2_000:],
        metric_name=metric,
        metric_value=value,
        direction="maximize" if fields.get("direction") == "maximize" else "minimize",
        metrics=Metrics(peak_vram_mb=None if memory is None else memory * MB_PER_GB),
    )


REMEMBERED_VERSIONS = 4
"""Versions that may still lie at the path, or where it was moved from, without being an edit."""
STATE_LIMIT = 16 * 1024 * 1024


class Written(BaseModel):
    """The document `.NAME`."""

    model_config = ConfigDict(defer_build=True)

    marks: list[str] = []
    """SHA-256 of the versions that were written last, the newest first."""
    content: str = ""


class DerivedFile:
    """A file that only we write. All but `content` need the lock of its writer.

    Args:
        remedy: the commands that do what an edit of the file was meant to do.
    """

    def __init__(self, layout: Layout, path: Path, *, remedy: str) -> None:
        self.layout = layout
        self.path = path
        self._remedy = remedy
        self._state = layout.written_copy(path)
        self._before = layout.replaced_version(path)

    def content(self) -> bytes | None:
        """Return what was written last, whatever became of the file; None if that is unknown."""
        content = self._written().content
        return content.encode() if content else None

    def move_edits(self) -> list[Path]:
        """Move each version that is not ours to `research/conflicts/`; return where they are."""
        marks = self._written().marks
        return [
            self._set_aside(path)
            for path in (self.path, self._before)
            if _mark(path) not in (None, *marks)
        ]

    def write(self, content: bytes, *, durable: bool = True) -> None:
        """Replace the file, after `move_edits`.

        An edit that arrives meanwhile stays where it is until the next call. The replaced version
        stays for as long, since an editor that has it open may still write into it.

        Raises:
            RecordError: the disk is full.
        """
        self.move_edits()
        marks = [sha256(content).hexdigest(), *self._written().marks][:REMEMBERED_VERSIONS]
        write_json(self._state, Written(marks=marks, content=content.decode()), durable=durable)
        with suppress(FileNotFoundError):
            os.rename(self.path, self._before)
            if _mark(self._before) not in marks:
                with suppress(FileExistsError):
                    rename_exclusive(self._before, self.path)
                return
        write_new(self.path, content, durable=durable)
        remove_stale_temporaries(self.path.parent)

    def _written(self) -> Written:
        return load_or_none(Written, self._state, limit=STATE_LIMIT) or Written()

    def _set_aside(self, path: Path) -> Path:
        """Move `path`, after its reason was written: a kill in between leaves the edit in place."""
        stamp = f"{now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
        kept = self.layout.conflicts / f"{stamp}-{self.path.name}"
        reason = f"{self.path.name} is made from other files, so an edit has no effect: "
        write_atomic(kept.with_name(f"{kept.name}.reason"), as_called(f"{reason}{self._remedy}\n"))
        with suppress(FileNotFoundError):
            os.rename(path, kept)
        return kept


def _mark(path: Path) -> str | None:
    try:
        return sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        return None
    except RecordError:
        return "no file"
