"""The pages in a real browser: nothing runs, nothing is loaded from elsewhere, all can be read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from .browsing import CHROMIUM, Browsing
from .conftest import ROOT
from .picture import SHOTS
from .showcase import TASK, Showcase, key

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
]
HOSTILE = (
    "<script>document.title='run'</script><img src=https://tracker.example/a.png onerror=alert(1)>"
    " [x](javascript:alert(1)) ![y](https://tracker.example/b.png) <svg onload=alert(1)>"
    " <style>*{background:url(https://tracker.example/c.png)}</style> "
)
WIDE = "a_very_long_word_without_any_place_to_break" * 20


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Showcase]:
    """A search, and what somebody wrote who means no good."""
    with Showcase.served(tmp_path_factory.mktemp("browser")) as case:
        agent, wide = case.agents["h100-b"], HOSTILE + WIDE
        made = case.commit(agent, None, wide, HOSTILE=repr(wide))
        case.commit(agent, made, wide, HOSTILE=repr(HOSTILE))
        case.told(agent, "/api/channels", {"name": "hostile", "description": wide})
        table = f"|{WIDE}|a|\n|-|-|\n|b|c|\n"
        case.post("h100-b", "hostile", f"{wide}\n\n    {WIDE}\n\n{table}")
        case.post("h100-b", "results", f"commit:{made[:7]} platform:H100 val_bpb:1.5 | {HOSTILE}")
        case.result("H100", 1, made, 1.25, HOSTILE + WIDE[:600], reason=HOSTILE[:200])
        yield case


@pytest.fixture(scope="module")
def browsing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browsing]:
    with Browsing.begin(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="module")
def paths(shown: Showcase) -> list[str]:
    """One page of each kind at least, the hostile ones among them."""
    commits = shown.agents["h100-a"].get("/api/git/commits?limit=40")
    results = shown.agents["h100-a"].get("/api/results?limit=3")
    posts = shown.agents["h100-a"].get("/api/channels/hostile/posts")
    return [
        "/", f"/board?platform=H100&platform_key={key('H100')}&task_hash={TASK}&metric=val_bpb",
        "/results", *(f"/results/{row['id']}" for row in results), "/commits",
        "/commits?show=frontier", *(f"/commits/{commits[place]['hash']}" for place in (0, 1, 12)),
        "/channels", "/channels/discussion", "/channels/hostile", f"/posts/{posts[0]['id']}",
        "/agents", "/agents/h100-b", "/docs", "/nowhere",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_runs_loads_or_hides_anything(
    shown: Showcase, browsing: Browsing, paths: list[str], scheme: str
) -> None:
    """On a phone of 360 pixels: no script, no other host, no word beyond the edge."""
    seen = browsing.see(shown.hub.url, scheme, width=360, height=640)
    for path in paths:
        seen.visit(shown.hub.url + path)
        missing = path == "/nowhere"
        assert seen.status == (404 if missing else 200), path
        assert [one for one in seen.said if not (missing and "404" in one)] == [], path
        assert all(one.startswith(shown.hub.url + "/") for one in seen.asked), (path, seen.asked)
        assert seen.page.title().endswith(" – Autohypothesis hub"), path
        wide = seen.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, (path, wide)
        ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark"), path
    seen.close()


def test_the_keyboard_finds_every_link_and_shows_where_it_is(
    shown: Showcase, browsing: Browsing
) -> None:
    seen = browsing.see(shown.hub.url + "/channels")
    reached = []
    for _ in range(8):
        seen.page.keyboard.press("Tab")
        reached.append(
            seen.page.evaluate(
                "[document.activeElement.innerText.trim(),"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    assert [words for words, _ in reached] == [
        "Skip to the content", "Autohypothesis hub", "Leaderboard", "Results", "Commits",
        "Channels", "Agents", "API",
    ]  # fmt: skip
    assert {outline for _, outline in reached} == {"solid"}
    seen.close()


@pytest.mark.slow
def test_the_pictures_of_the_documents_can_be_made_again(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.hub.picture", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=280)
    for name, *_ in SHOTS:
        made, shown = (
            (folder / f"{name}.png").read_bytes() for folder in (tmp_path, ROOT / "docs/example")
        )
        assert made[:24] == shown[:24], name  # a PNG of the same size; fonts are the machine's
        assert len(shown) < 300_000
