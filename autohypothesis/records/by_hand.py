"""Lines that people write into the ledger and into results.tsv: taken in as rows, never lost.

A line becomes a bundle of its own: its number is attested by nobody, and it waits for no decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json

from autohypothesis.plain import plain
from autohypothesis.records import bundles
from autohypothesis.records.files import write_atomic, write_json
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.rows import DECIDED, MB_PER_GB, real
from autohypothesis.records.tables import COLUMNS, harmless
from autohypothesis.schema import Metrics, Plan, PlannedHypothesis, Result, Row, finite, now

WORKER = "by-hand"
FAILED = ("crash", "failed", "artifact_invalid")
MOST = 2_000
"""Lines that are taken in at once; a longer table is somebody's data, no note of a run."""


_ROW = set(Row.model_fields)


class HandLine(NamedTuple):
    """A line that we did not write."""

    source: str
    """The name of its file."""
    text: str
    fields: Mapping[str, Any]
    """By the names of a row."""


class LedgerLines(NamedTuple):
    """What lies in experiments.jsonl."""

    by_hand: list[HandLine]
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
    found: list[HandLine] = []
    ours: dict[str, bytes] = {}
    damaged = gone = 0
    for line in content.splitlines():
        if not line.strip():
            continue
        try:
            value = from_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            damaged += 1
        elif isinstance(value.get("id"), str) and value["id"] in known:
            ours[value["id"]] = line
        elif value.keys() >= _ROW:
            gone += 1
        else:
            found.append(HandLine("experiments.jsonl", line.decode("utf-8", "replace"), value))
    return LedgerLines(found, ours, damaged, gone)


def table_lines(texts: Iterable[str]) -> Iterator[HandLine]:
    """Lines of a results.tsv, those of the published format."""
    for text in texts:
        cells = dict(zip(COLUMNS, text.split("\t"), strict=False))
        if len(text) < 4_000 and cells.get("status") in DECIDED:
            yield HandLine("results.tsv", text, {**cells, "peak_vram_gb": cells["memory_gb"]})


def take_in(layout: Layout, tag: str, lines: Iterable[HandLine]) -> list[str]:
    """Make a bundle of each line that has none yet; the ids of the new ones.

    Raises:
        RecordError: the disk is full.
    """
    return [name for line in lines for name in _take(layout, tag, line)]


def _take(layout: Layout, tag: str, line: HandLine) -> Iterator[str]:
    digest = hashlib.sha256(line.text.encode("utf-8", "replace")).hexdigest()[:12]
    given, own = line.fields.get("id"), line.fields.get("tag")
    name = given if isinstance(given, str) and ID.fullmatch(given) else f"{WORKER}-{digest}-1"
    if layout.run(name).folder.exists() or layout.plan(name).exists():
        return
    title = harmless(str(line.fields.get("description") or "")) or f"a line of {line.source}"
    plan = Plan(
        experiment_id=name,
        created_at=now(),
        based_on_commit="",
        worker_id=WORKER,
        tag=own if isinstance(own, str) and ID.fullmatch(own) else tag,
        hypothesis=PlannedHypothesis(hypothesis_id=name.rpartition("-")[0] or name, title=title),
    )
    run = layout.run(name)
    write_atomic(run.log, plain(line.text) + "\n", durable=False)
    bundles.write_result(run, _result(line, title))
    write_json(layout.plan(name), plan)
    yield name


def _result(line: HandLine, title: str) -> Result:
    fields = line.fields
    metric = fields.get("metric_name")
    metric = harmless(metric)[:64] if isinstance(metric, str) and metric else "val_bpb"
    status = harmless(str(fields.get("status") or ""))[:40]
    stated = fields.get("metric_value", fields.get(metric))
    value = None if status in FAILED else real(_number(stated), metric)
    memory = _number(fields.get("peak_vram_gb"))
    said = f"written into {line.source} by hand" + (f" as {status}" if status else "")
    return Result(
        status="failed" if value is None else "completed",
        recorded_at=now(),
        commit=harmless(str(fields.get("commit") or ""))[:64],
        title=title,
        outcome=said,
        failure_detail=said if value is None else "",
        log_tail=plain(line.text)[-2_000:],
        metric_name=metric,
        metric_value=value,
        direction="maximize" if fields.get("direction") == "maximize" else "minimize",
        metrics=Metrics(peak_vram_mb=None if memory is None else memory * MB_PER_GB),
    )


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return finite(value)
