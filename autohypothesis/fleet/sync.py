"""Sync: folds the bundles under research/ into the ledger and the tables made from it.

It owns experiments.jsonl, results.tsv and research/aggregate/, and writes nothing else: bundles,
plans and decisions belong to those who made them. It may be run at any time, beside writers and
other syncs, and killed at any instant; run twice, the second time changes nothing. It draws
nothing: that costs more than all the rest. Parquet and fleet brief take seconds after thousands of
runs, so they are made from what was folded once the lock is let go.
"""

from __future__ import annotations

import io
import os
import stat
import time
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic_core import from_json

from autohypothesis.errors import RecordError
from autohypothesis.fleet.live.presence import HEARTBEAT_LIMIT, worker_lives
from autohypothesis.installation import as_called
from autohypothesis.plain import plain, templates
from autohypothesis.records import jsonl, tables
from autohypothesis.records.bundles import UNSETTLED, reason_in
from autohypothesis.records.comparison import cell_of, comparison_of
from autohypothesis.records.files import (
    ASIDE,
    JSON_LIMIT,
    kind_of,
    load,
    read_bytes,
    remove_stale_temporaries,
    set_aside,
    shown,
    to_json,
    write_atomic,
    write_extended,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import (
    LIMIT,
    Folded,
    manifest_tag,
    newest_tag,
    no_collections,
    refold,
    save_index,
    stamp,
)
from autohypothesis.records.locks import hold
from autohypothesis.records.outcomes import counts_line
from autohypothesis.records.outputs import MOST, is_half_taken, ledger_lines, table_lines, take_in
from autohypothesis.records.problems import problem_lines
from autohypothesis.records.tables import HandEdit
from autohypothesis.schema import Heartbeat, Problem, Row, now, rfc3339

REFRESH_S = 60.0
"""Parquet and fleet brief older than this are made anew when something changed."""
LOCK_TIMEOUT_S = 120.0
RESULTS_LIMIT = 64 * 1024 * 1024
_AGGREGATE_END = b"\n]}\n"
LATEST = 12
"""Rows in each list of the fleet brief."""


@dataclass(slots=True)
class SyncReport:
    """The outcome of a sync."""

    rows: int
    changed: int
    """Rows that are new or differ from the ledger before."""
    tag: str
    problems: list[Problem] = field(default_factory=list)
    hand_edits: list[HandEdit] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    """New experiments whose line was written by hand."""
    imported: list[str] = field(default_factory=list)
    """New experiments that another tool made and decided."""
    written: list[str] = field(default_factory=list)
    """Paths, from the root; files whose content was the same already are not among them."""
    seconds: float = 0.0


@no_collections()
def sync(layout: Layout, *, all: bool = False, light: bool = False) -> SyncReport:
    """Bring the ledger and its tables up to date.

    Args:
        all: refresh parquet and fleet brief whatever their age.
        light: leave parquet and fleet brief to another sync; they take a second.

    Raises:
        LockError: another sync has run for two minutes; the message names it.
        RecordError: the disk is full, or the root cannot be written.
    """
    started = time.perf_counter()
    with hold(layout, "sync", doing="sync", timeout=LOCK_TIMEOUT_S):
        run = _Sync(layout, refold(layout))
        report = run.write(everything=all, light=light)
        if taken := run.taken:  # their rows are in the next fold
            run = _Sync(layout, refold(layout))
            report = run.write(everything=all, light=light)
            report.taken = taken
    run.write_aged()
    report.seconds = round(time.perf_counter() - started, 4)
    return report


class _Sync:
    def __init__(self, layout: Layout, folded: Folded) -> None:
        self.layout = layout
        self.folded = folded
        self.tag = self._active_tag()
        self.written: list[str] = []
        self.taken: list[str] = []
        self.deferred: list[tuple[Path, Callable[[], bytes]]] = []
        """Files to make anew after the lock is released."""
        self.folded_at = 0
        """Time after the last write of the ledger, in nanoseconds since the epoch."""

    def write(self, *, everything: bool, light: bool) -> SyncReport:
        self._clear(self.layout.aggregate, stat.S_ISDIR)
        for folder in (self.layout.root, self.layout.aggregate):
            remove_stale_temporaries(folder)
        self._write_ledger()
        self._report_set_aside()
        if self.folded.judged.readable:
            self._results()
        heartbeats = sorted(self.layout.heartbeat("any").parent.glob("[!.]*.json"))
        board = tables.leaderboard(self.folded, self.tag, sum(map(self._at_work, heartbeats)))
        self._dated(self.layout.leaderboard, board)
        if not light:
            self._defer_if_stale(
                self.layout.fleet_brief,
                everything,
                lambda: partial(self._brief, board, *tables.latest(self.folded, self.tag, LATEST)),
            )
            self._defer_if_stale(
                self.layout.aggregate_parquet,
                everything,
                lambda: partial(_as_parquet, self.folded.content),
            )
        problems = [problem.model_dump() for problem in self.folded.problems]
        self._table(self.layout.problems, to_json({"problems": problems}, indent=2) + "\n")
        self.folded_at = time.time_ns()
        return SyncReport(
            rows=len(self.folded.entries),
            changed=self.folded.changed,
            tag=self.tag,
            problems=self.folded.problems,
            hand_edits=tables.hand_edits(self.folded.entries),
            imported=tables.imported(self.folded),
            written=self.written,
        )

    def write_aged(self) -> None:
        """Write what `write` found due. It is as old as the fold, and never replaces a newer one.

        Raises:
            RecordError: the disk is full.
        """
        for path, make in self.deferred:
            content = make()
            by_newer_sync = self.folded_at < _written_at(path) * 1e9 <= time.time_ns()
            if not by_newer_sync:
                self._put(path, content, durable=False)
                with suppress(OSError):
                    os.utime(path, ns=(self.folded_at, self.folded_at))

    # ── read beside the bundles ───────────────────────────────────────────────────

    def _active_tag(self) -> str:
        tag, wrong = manifest_tag(self.layout)
        if wrong:
            self._complain(self.layout.manifest, wrong)
        if tag:
            return tag
        if self.folded.judged.last_tag:
            return self.folded.judged.last_tag
        every = (entry.shown for entry in self.folded.entries.values())
        return newest_tag((one.timestamp, one.tag) for one in every if not one.imported)

    def _at_work(self, path: Path) -> bool:
        try:
            return worker_lives(load(Heartbeat, path, HEARTBEAT_LIMIT))
        except RecordError as error:
            self._complain(path, reason_in(error, path))
        except FileNotFoundError:
            pass
        return False

    def _complain(self, path: Path, reason: str) -> None:
        short = str(path).removeprefix(f"{self.layout.root}/")
        self.folded.problems.append(Problem(path=shown(short), reason=shown(reason)))

    # ── written ───────────────────────────────────────────────────────────────────

    def _write_ledger(self) -> None:
        """Ledger, aggregate, then the index that vouches for both: a kill between costs a fold."""
        layout, text = self.layout, self.folded.text
        folded, index = self.folded, self.folded.index
        aggregate = stamp(layout.aggregate_experiments)
        if index is None and not self._take_ledger():
            return
        if not folded.same and not self._append(layout.ledger):
            self._put(layout.ledger, text.whole())
        as_noted = index is not None and index.aggregate == aggregate != []
        if index is None or not as_noted or not folded.same:
            extends = as_noted and bool(text.kept)
            new = text.tail if extends else text.whole()
            new = new[:-1].replace(b"\n", b",\n") + _AGGREGATE_END  # no row has a break inside
            if extends:
                size = aggregate[1] - len(_AGGREGATE_END)
                write_extended(layout.aggregate_experiments, size, b",\n" + new)
                self._note_written(layout.aggregate_experiments)
            else:
                document = b'{"experiments": [\n' + new
                self._put(layout.aggregate_experiments, document, durable=False)
        elif (index.entries, index.decisions) == (folded.entries, folded.judged.stamp):
            return
        self._clear(layout.fold_index)
        save_index(layout, folded)

    def _append(self, path: Path) -> bool:
        """Add rows to a ledger that is as we left it; return False where that cannot be done."""
        text = self.folded.text
        added = bool(text.kept) and jsonl.append_lines(path, text.tail, at=text.kept)
        if added:
            self._note_written(path)
        return added

    def _take_ledger(self) -> bool:
        """Take in the lines that people wrote into the ledger; return whether it may be written.

        Another file of that name stays until there is a ledger of ours; then it is set aside.
        """
        path = self.layout.ledger
        try:
            known = {name for name in self.folded.entries if not is_half_taken(self.layout, name)}
            lines = ledger_lines(read_bytes(path, LIMIT), known)
        except (FileNotFoundError, RecordError):
            return True  # what is no file is dealt with where files are put
        if lines.foreign and not self.folded.entries and not lines.gone:
            self._complain(path, "is not ours, and stays as it is")
            return False
        if not lines.foreign and len(lines.by_hand) <= MOST:
            self.taken += take_in(self.layout, self.tag, lines.by_hand)
            if not lines.damaged and not self._is_edited(lines.ours):
                return True
        set_aside(path)
        return True

    def _report_set_aside(self) -> None:
        name = self.layout.ledger.name + ASIDE
        for aside in sorted(one for one in os.listdir(self.layout.root) if one.startswith(name)):
            hint = "was set aside: it held what is not ours; take from it what you need"
            self._complain(self.layout.root / aside, f"{hint}, and delete it")

    def _is_edited(self, lines: Mapping[str, bytes]) -> bool:
        before, ours = self.folded.last, self.folded.lines()
        for key, line in lines.items():
            old, new = before.entries.get(key) if before else None, self.folded.entries[key]
            same = old == new and new.signature != UNSETTLED
            if same and ours[key].strip() != line.strip():
                return True
        return False

    def _results(self) -> None:
        """results.tsv of the tag. Lines that were there before stand first, added ones last.

        A file of that name that is no such table, or that the repository tracks, stays as it is;
        our lines alone are under research/ as well.
        """
        ours = tables.results_tsv(self.folded.entries, self.tag)
        path, copy = self.layout.results_tsv, self.layout.aggregate_results_tsv
        text = self._text(copy)
        if text and ours.startswith(text) and self._text(path) == text:  # rows were added, if any
            self._table(copy, ours)
            self._table(path, ours, unless=self._tracked)
            return
        before = self._lines(copy)
        theirs = self._their_lines(ours, before) if self._may_write(path, not before) else None
        changed = set(before or ()) - set(ours.split("\n"))  # a kill may leave them at `path`
        if theirs and self.folded.entries and not before:
            self._table(self.layout.results_before, tables.HEADER + _joined(theirs))
        self._table(copy, ours + _joined(changed))
        if theirs is not None and (self.folded.entries or not theirs):
            self._write_results(ours, theirs)
        self._table(copy, ours)

    def _write_results(self, ours: str, theirs: list[str]) -> None:
        known = set(self._lines(self.layout.results_before) or ())
        before = [line for line in theirs if line in known]
        added = [line for line in theirs if line not in known]
        self.taken += take_in(self.layout, self.tag, table_lines(added[:MOST]))
        whole = tables.HEADER + _joined(before) + ours.removeprefix(tables.HEADER) + _joined(added)
        self._table(self.layout.results_tsv, whole, unless=self._tracked)

    def _may_write(self, path: Path, first: bool) -> bool:
        """Return whether there is room for our table at `path`, or one of the published format.

        Something else that was there before our first stays; an empty `results_before` says so.
        What has taken the place of ours since is set aside.
        """
        try:
            text = read_bytes(path, RESULTS_LIMIT).decode("utf-8", "replace")
            if not text.strip() or text.partition("\n")[0].strip() == tables.HEADER.strip():
                return True
            wrong = "is no table of ours"
        except FileNotFoundError:
            return True
        except RecordError as error:
            wrong = reason_in(error, path)
        taken = self.layout.results_before
        if first and not taken.exists():
            self._table(taken, "")
        if first or (taken.exists() and not taken.stat().st_size):
            self._complain(path, f"{wrong}, and stays; ours is {self._copy}")
            return False
        self._set_aside(path, wrong)
        return True

    def _their_lines(self, ours: str, before: list[str] | None) -> list[str]:
        mine = {*ours.split("\n"), *(before or ()), tables.HEADER.strip(), ""}
        lines = self._lines(self.layout.results_tsv) or []
        known = tables.commits_of(self.folded.entries) if lines and before is None else set()
        if lines and any(line.startswith(lines[-1]) for line in mine):
            lines.pop()  # ours, or torn
        return [one for one in lines if one not in mine and one.split("\t")[0] not in known]

    def _text(self, path: Path) -> str | None:
        try:
            return read_bytes(path, RESULTS_LIMIT).decode("utf-8", "replace")
        except (FileNotFoundError, RecordError):
            return None

    def _lines(self, path: Path) -> list[str] | None:
        text = self._text(path)
        if text is None:
            return None
        return [line.rstrip("\r") for line in text.split("\n")[1:] if line.strip()]

    def _tracked(self, path: Path) -> bool:
        if tracked := Repository(self.layout.root).tracks(path):
            self._complain(path, f"is tracked by the repository, and stays; ours is {self._copy}")
        return tracked

    @property
    def _copy(self) -> str:
        return str(self.layout.aggregate_results_tsv.relative_to(self.layout.root))

    def _table(
        self, path: Path, text: str, unless: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """Write a table that is new, unless `unless` says no: a sync of nothing changes nothing."""
        content = text.encode("utf-8", "replace")
        try:
            if read_bytes(path, len(content)) == content:
                return
        except (FileNotFoundError, RecordError):
            pass
        if not unless(path):
            self._put(path, content)

    def _dated(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write a document with its date, which alone is no reason to write it again."""
        try:
            before = from_json(read_bytes(path, JSON_LIMIT))
            undated = {**before, "generated_at": None} if isinstance(before, dict) else None
            if undated == {**value, "generated_at": None}:
                return
        except (FileNotFoundError, RecordError, ValueError):
            pass
        self._table(path, to_json({"generated_at": rfc3339(now()), **value}, indent=2) + "\n")

    def _defer_if_stale(
        self, path: Path, everything: bool, prepare: Callable[[], Callable[[], bytes]]
    ) -> None:
        """Note what is older than the ledger to be made anew, once a minute at most.

        `prepare` reads what is needed of the ledger while the lock is held.
        """
        made, folded = _written_at(path), _written_at(self.layout.ledger)
        due = made < folded and time.time() - made > REFRESH_S
        if everything or due:
            self._clear(path)  # under the lock, so that problems.json tells of it
            self.deferred.append((path, prepare()))

    def _put(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        """Write one file. A folder in its place is set aside: no rename can replace it."""
        self._clear(path)
        write_atomic(path, content, durable=durable)
        self._note_written(path)

    def _note_written(self, path: Path) -> None:
        self.written.append(str(path.relative_to(self.layout.root)))

    def _clear(self, path: Path, fits: Callable[[int], bool] = stat.S_ISREG) -> None:
        """Set aside what lies at `path` and is of another kind than we put there."""
        try:
            mode = os.stat(path).st_mode if fits is stat.S_ISDIR else os.lstat(path).st_mode
        except OSError:
            return
        if not fits(mode):
            self._set_aside(path, f"was {kind_of(mode)}")

    def _set_aside(self, path: Path, why: str) -> None:
        self._complain(path, f"{why}; it is {set_aside(path).name} now")

    # ── made only now and then ────────────────────────────────────────────────────

    def _brief(self, board: Mapping[str, Any], decided: list[Any], waiting: list[Any]) -> bytes:
        template = templates(Path(__file__).parent / "templates").get_template("fleet_brief.md.j2")
        page = template.render(
            tag=self.tag,
            generated_at=rfc3339(now()),
            board=board,
            best=board["best_run"],
            latest=decided,
            cell_of=cell_of,
            comparison_of=comparison_of,
            counts_line=counts_line,
            open=waiting,
            problems=problem_lines(self.folded.problems)[:LATEST],
        )
        return (plain(as_called(page)).rstrip() + "\n").encode("utf-8", "replace")


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _written_at(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _as_parquet(content: bytes) -> bytes:
    """The ledger for notebooks, a column for each published key; lists and objects as JSON text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types_by_kind = {bool: pa.bool_(), float: pa.float64(), int: pa.int64()}

    def column_type(name: str) -> Any:
        annotation = Row.model_fields[name].annotation
        is_union = get_origin(annotation) in (Union, types.UnionType)
        kinds = set(get_args(annotation)) if is_union else {annotation}
        return next((kind for key, kind in types_by_kind.items() if key in kinds), pa.string())

    schema = pa.schema([(name, column_type(name)) for name in Row.model_fields])
    rows = [from_json(line) for line in content.splitlines()]
    for row, field_ in product(rows, schema):
        value = row.get(field_.name)
        if field_.type == pa.string() and value is not None and not isinstance(value, str):
            row[field_.name] = to_json(value)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()
