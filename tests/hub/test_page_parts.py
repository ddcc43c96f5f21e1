"""Parts of the pages by themselves: markdown, lanes, pictures and diffs, whatever comes in."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autohypothesis.hub.server import store
from autohypothesis.hub.server.boards import ChartPoint
from autohypothesis.hub.server.pages.drawings import HEIGHT, LANES, WIDTH, chart, tree_rows
from autohypothesis.hub.server.pages.rendering import diff_parts, markdown, number
from autohypothesis.hub.server.refusals import HubRefusalError

from .reading import Reading

# ── markdown ────────────────────────────────────────────────────────────────────────────────

PIECES = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "javascript:alert(1)", "data:",
    "![", "[a](", "](", ")", "<", ">", "&#106;", "&colon;", "\"", "'", "`", "```\n", "\n", "\n\n",
    "|", "-", "#", "*", "_", "https://example.org/", "//example.org", "/agents/ada", "x", " ", "\0",
    "<http://e.org>", "[x]: javascript:1\n", "<svg/onload=alert(1)>", "\u202e", "vbscript:", "~~",
    "<!--", "]]>", "<a href='javascript:1'>",
]  # fmt: skip
ALLOWED = {
    "a", "blockquote", "br", "code", "em", "hr", "li", "ol", "p", "pre", "s", "strong", "table",
    "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


@settings(max_examples=100)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.text()))
@example("![x](https://tracker.example/x.png)")
@example("[x](JaVaScRiPt:alert(1))")
@example("[x](&#x6A;avascript:alert(1))")
@example("<https://example.org/\u202e>")
def test_no_post_becomes_more_than_text_and_links(text: str) -> None:
    found = Reading(str(markdown(text)))
    assert found.open == []
    for name, attributes in found.elements:
        assert name in ALLOWED
        assert attributes.keys() <= ({"href", "title", "rel"} if name == "a" else {"start"})
        if name == "a" and "href" in attributes:
            link = urlsplit(attributes["href"])
            assert link.scheme in ("http", "https", "mailto")
            assert link.netloc or link.scheme == "mailto"
            assert attributes["rel"] == "nofollow noopener noreferrer"


def test_posts_look_as_they_were_meant() -> None:
    html = str(
        markdown("# A\n\n**b** `c` [d](https://e.org/) ![f](https://e.org/g.png)\n\n|h|\n|-|\n|i|")
    )
    assert "<p><strong>A</strong></p>" in html and "<code>c</code>" in html
    assert "<strong>b</strong>" in html and "<td>i</td>" in html
    assert '<a href="https://e.org/g.png" rel="nofollow noopener noreferrer">picture: f</a>' in html


@pytest.mark.parametrize("piece", ["[", "[a](", "*a ", "> ", "- ", "`a", "|a", "<", "a\n\n", "&a"])
def test_the_longest_post_of_one_kind_is_shown(piece: str) -> None:
    """Some parsers of markdown take minutes over these; then the guard of every test ends it."""
    assert Reading(str(markdown(piece * (32_000 // len(piece))))).words


# ── the tree ────────────────────────────────────────────────────────────────────────────────


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Commits newest first; each has parents among those below it, or none."""
    size = draw(st.integers(1, 40))
    rows: list[dict[str, Any]] = []
    for place in range(size):
        older = [row["hash"] for row in rows]
        below = st.lists(st.sampled_from(older), max_size=3, unique=True) if older else st.just([])
        rows.append({"hash": f"c{place}", "parents": draw(below)})
    inner = {parent for row in rows for parent in row["parents"]}
    for row in rows:
        row["leaf"] = row["hash"] not in inner
    return rows[::-1]


@given(histories())
def test_every_lane_leads_from_a_commit_to_its_parent(commits: list[dict[str, Any]]) -> None:
    lines = tree_rows(commits)
    dots = {row["hash"]: place for place, row in enumerate(commits)}
    for place, (row, line) in enumerate(zip(commits, lines, strict=True)):
        assert line.width <= LANES + 1
        assert len(set(line.down)) == len(line.down)
        assert line.dot not in line.passing
        assert line.from_above == (not row["leaf"])
        reached = {ends_at(lines, place, lane) for lane in line.down}
        wanted = {dots[parent] for parent in row["parents"]}
        assert reached <= wanted
        if all(LANES not in (one.dot, one.width - 1) and one.width < LANES for one in lines):
            assert reached == wanted


def ends_at(lines: list[Any], place: int, lane: int) -> int:
    """The row whose dot a lane runs into."""
    for below in range(place + 1, len(lines)):
        if lines[below].dot == lane and lane not in lines[below].passing:
            return below
        assert lane in lines[below].passing, "a lane ends nowhere"
    raise AssertionError("a lane leaves the list though all parents are on it")


def test_many_tries_on_one_commit_stay_narrow() -> None:
    tries = [{"hash": f"t{one}", "parents": ["base"], "leaf": True} for one in range(30)]
    lines = tree_rows([*tries, {"hash": "base", "parents": [], "leaf": False}])
    assert max(line.width for line in lines) == 2


# ── pictures ────────────────────────────────────────────────────────────────────────────────

VALUES = st.floats(allow_nan=False, allow_infinity=False)
RESULTS = st.tuples(
    st.floats(0, 4e9), VALUES, st.sampled_from(["reproduced", "claimed", "refuted"])
)


@given(st.lists(RESULTS, max_size=30))
@example([(0.0, -1.7e308, "claimed"), (1.0, 1.7e308, "claimed")])
@example([(0.0, 5e-324, "claimed"), (1.0, 0.0, "claimed")])
@example([(0.0, 1.0, "claimed"), (1.0, 1.0000000000000002, "claimed")])
@example([(0.0, 1.0, "claimed"), (5e-324, 0.9, "claimed")])
def test_whatever_was_told_the_picture_stays_in_its_frame(
    told: list[tuple[float, float, str]],
) -> None:
    shown = [ChartPoint(place, at, value, state) for place, (at, value, state) in enumerate(told)]
    steps: list[ChartPoint] = []
    for one in shown:
        if one.state != "refuted" and (not steps or one.value < steps[-1].value):
            steps.append(one)
    found = chart(steps, shown)
    if found is None:
        return
    for mark in found.marks:
        assert 0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT
    assert {step.id for step in steps} <= {mark.point.id for mark in found.marks}
    for tick in found.up:
        assert 0 <= tick.at <= HEIGHT and len(tick.label) <= 13
    for tick in found.across:
        assert 0 <= tick.at <= WIDTH


def test_the_picture_steps_down_at_each_improvement() -> None:
    hour = 3600.0
    steps = [ChartPoint(1, 0, 1.0, "claimed"), ChartPoint(2, 2 * hour, 0.9, "reproduced")]
    found = chart(
        steps, [ChartPoint(3, hour, 0.5, "refuted"), ChartPoint(4, hour, 0.95, "claimed")]
    )
    assert found is not None
    first, last = (next(mark for mark in found.marks if mark.point.id == one) for one in (1, 2))
    assert found.line.startswith(f"M{first.x} {first.y}H{last.x}V{last.y}H")
    assert first.x < last.x and first.y < last.y  # a better value stands lower
    assert [mark.point.id for mark in found.marks] == [4, 1, 2]  # 3 is far outside
    assert [tick.label for tick in found.across] == ["00:00", "01:00", "02:00"]
    assert found.day == "1970-01-01"
    assert [tick.label for tick in found.up] == ["0.90", "0.92", "0.94", "0.96", "0.98", "1.00"]
    assert chart(steps[:1], steps[:1]) is None, "one result is no picture"


def test_numbers_keep_the_digits_that_say_something() -> None:
    shown = [number(one) for one in (None, 0.0, 0.9979, 12.5, 1.5e-7, 123456.7, 1e300)]
    assert shown == ["–", "0.000000", "0.997900", "12.500000", "1.5e-07", "123457", "1e+300"]


# ── diffs ───────────────────────────────────────────────────────────────────────────────────


def test_lines_of_a_diff_are_what_they_are_and_not_what_they_begin_with() -> None:
    text = (
        "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n--- not a file\n+++ nor this\n"
        " same\ndiff --git a/y b/y\nnew file mode 100644\n"
    )
    assert [(one.kind, one.text) for one in diff_parts(text.encode())] == [
        ("file", "diff --git a/x b/x\n--- a/x\n+++ b/x"), ("hunk", "@@ -1,2 +1,3 @@"),
        ("removed", "--- not a file"), ("added", "+++ nor this"), ("same", " same"),
        ("file", "diff --git a/y b/y\nnew file mode 100644"),
    ]  # fmt: skip
    assert list(diff_parts(b"")) == []
    assert next(diff_parts(b"@@ \xff\n")).text == "@@ \ufffd"


def test_diffs_in_memory_are_bounded_and_made_once_each() -> None:
    made: list[str] = []
    diffs = store.DiffCache(kept_bytes=100)

    def ask(name: str, size: int = 40) -> int:
        return len(diffs.of(name, lambda: None, lambda: made.append(name) or bytes(size)))

    assert [ask(name) for name in ("a", "b", "a", "c", "a", "b")] == [40] * 6
    assert made == ["a", "b", "c", "b"]  # b gave way to c: a had been asked for since
    assert ask("large", 500) == 500 and ask("a") == 40
    assert made[-2:] == ["large", "a"]


def test_one_diff_is_made_at_a_time_and_what_fails_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_S", 0.05)
    diffs, begun, go = store.DiffCache(), threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        assert go.wait(60)
        return b"slow"

    other = threading.Thread(target=diffs.of, args=("a", lambda: None, slow))
    other.start()
    assert begun.wait(60)
    with pytest.raises(HubRefusalError) as refused:
        diffs.of("b", lambda: None, lambda: b"")
    assert refused.value.status == 503
    go.set()
    other.join()

    def full() -> None:
        raise HubRefusalError(429, "too many")

    with pytest.raises(HubRefusalError):
        diffs.of("c", full, lambda: b"")
    assert diffs.of("a", full, full) == b"slow"  # type: ignore[arg-type]
    assert diffs.of("c", lambda: None, lambda: b"now") == b"now"
