"""Tables of earlier searches: whatever people and programs wrote for "nothing" is no number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autohypothesis.errors import RecordError, UsageError
from autohypothesis.fleet.knowledge import knowledge_base
from autohypothesis.fleet.knowledge.knowledge_base import carried, read, record
from autohypothesis.records.files import read_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import KnowledgeBase

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "results.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_published_table_is_read(tmp_path: Path) -> None:
    warm = read(
        table(
            tmp_path,
            HEADER + "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n"
            "b2c3d4e\t0.993200\t44.2\tkeep\tincrease LR to 0.04\n"
            "c3d4e5f\t1.005000\t44.0\tdiscard\tswitch to GeLU activation\n"
            "d4e5f6g\t0.000000\t0.0\tcrash\tdouble model width (OOM)\n",
        )
    )
    assert [one.status for one in warm.tried] == ["keep", "keep", "discard", "crash"]
    assert warm.first and warm.first.value == 0.9979
    assert warm.best and (warm.best.commit, warm.best.memory_gb) == ("b2c3d4e", 44.2)
    assert warm.tried[3].value is None and not warm.problems
    titles = [one.title for one in warm.findings()]
    assert titles == [
        "increase LR to 0.04: changed val_bpb by -0.004700",
        "switch to GeLU activation: did not help",
        "double model width (OOM): failed",
    ]


@pytest.mark.parametrize(
    "word",
    ["crash", "—", "---", "N/A", "", " ", "-", "–", "n/a", "nan", "NaN", "inf", "-inf", "0.0", "0",
     "-0.9", "0,997", "1e999", "oom", "null", "0.99 bpb", "1" * 400],
)  # fmt: skip
def test_what_is_no_measurement_is_none_and_never_the_best(tmp_path: Path, word: str) -> None:
    warm = read(table(tmp_path, HEADER + f"aaaaaaa\t{word}\t{word}\tkeep\tx\nb\t1.5\t1\tkeep\ty\n"))
    first, second = warm.tried
    assert (first.value, first.memory_gb, first.status) == (None, None, "crash")
    assert warm.best == second


def test_memory_in_mib_is_converted(tmp_path: Path) -> None:
    text = "commit\tval_bpb\tpeak_vram_mb\tstatus\tdescription\na\t1.0\t45060.2\tkeep\tx\n"
    (one,) = read(table(tmp_path, text)).tried
    assert one.memory_gb == pytest.approx(44.004, abs=1e-3)


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    text = "Status\tdescription\textra\tVAL_BPB\nkeep\tdeeper\t?\t0.9\ndiscard\twider\n"
    warm = read(table(tmp_path, text))
    assert [(one.status, one.value, one.description) for one in warm.tried] == [
        ("keep", 0.9, "deeper"), ("crash", None, "wider"),
    ]  # fmt: skip
    assert warm.problems == ["no column commit", "no column memory_gb or peak_vram_mb"]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_tables_from_other_systems_are_the_same(tmp_path: Path, end: str) -> None:
    lines = ["commit\tval_bpb\tmemory_gb\tstatus\tdescription", "", "a\t1.0\t2.0\tkeep\tx", ""]
    (one,) = read(table(tmp_path, b"\xef\xbb\xbf" + end.join(lines).encode())).tried
    assert (one.commit, one.value, one.description) == ("a", 1.0, "x")


def test_bytes_that_are_no_text_cost_nothing_but_themselves(tmp_path: Path) -> None:
    warm = read(table(tmp_path, HEADER.encode() + b"a\t1.0\t1\tkeep\t\xff\x00\x1b[31m\nb\t2\t1\n"))
    assert len(warm.tried) == 2 and warm.tried[0].description.isprintable()
    assert any("UTF-8" in problem for problem in warm.problems)


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "empty"), (b"\n\n", "empty"), (b"a1b2c3d\t0.99\t44.0\tkeep\tbaseline\n", "no column"),
     (b"commit,val_bpb,status\n", "no column"), (b"\x00" * 100, "no column")],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, content: bytes, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        read(table(tmp_path, content))
    assert "results.tsv" in str(caught.value)


def test_a_folder_a_pipe_or_nothing_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing"):
        with pytest.raises(UsageError, match="--warm-start"):
            read(path)
    table(tmp_path, HEADER).rename(tmp_path / "real.tsv")
    (tmp_path / "link.tsv").symlink_to(tmp_path / "real.tsv")
    assert read(tmp_path / "link.tsv").problems == ["no line below the first"]


def test_findings_are_bounded_and_taken_once(tmp_path: Path) -> None:
    rows = "".join(
        f"{n:07d}\t{2 - n / 1000:.6f}\t1\t{('keep', 'discard', 'crash')[n % 3]}\tidea {n}\n"
        for n in range(900)
    )
    layout = Layout(tmp_path)
    warm = read(table(tmp_path, HEADER + rows))
    assert (
        record(layout, warm)
        == knowledge_base.KEPT + knowledge_base.DISCARDED + knowledge_base.CRASHED
    )
    before = layout.knowledge_base.read_bytes()
    assert record(layout, warm) == 0 and layout.knowledge_base.read_bytes() == before
    base = KnowledgeBase.model_validate(read_json(layout.knowledge_base))
    assert [one["role"] for one in base.meta_research["anchors"]] == ["first", "best"]
    findings, anchors = carried(layout)
    assert len(findings) == len(base.tentative_findings)
    assert anchors == base.meta_research["anchors"]
    layout.knowledge_base.write_bytes(b"{")
    assert carried(layout) == ([], [])


def test_what_others_knew_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.knowledge_base.parent.mkdir()
    layout.knowledge_base.write_text(
        '{"updated_at": "2026-01-01T00:00:00Z", "contradictions": ["mine"],'
        ' "tentative_findings": [{"finding_id": "f-1", "title": "mine"}]}'
    )
    record(layout, read(table(tmp_path, HEADER + "a\t2\t1\tkeep\tx\nb\t1\t1\tkeep\ty\n")))
    base = KnowledgeBase.model_validate(read_json(layout.knowledge_base))
    assert base.contradictions == ["mine"] and base.tentative_findings[0].finding_id == "f-1"
    assert len(base.tentative_findings) == 2
    layout.knowledge_base.write_text('{"updated_at": "no"}')
    with pytest.raises(RecordError, match=r"knowledge_base\.json"):
        record(layout, read(table(tmp_path, HEADER + "a\t2\t1\tkeep\tx\n")))
    assert layout.knowledge_base.read_text() == '{"updated_at": "no"}'
