"""The pages for people: what they show, what they keep from doing, what they keep to themselves."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from autohypothesis.hub.server import commit_index
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.inspection import NewCommit
from autohypothesis.hub.server.pages.rendering import POLICY, static
from autohypothesis.hub.server.pages.routes import COMMITS
from autohypothesis.hub.server.settings import DataFolder

from .browsing import CHROMIUM, Browsing
from .conftest import ADMIN_KEY, ROOT, Answer, Hub, MakeClone, Start, ask, curl
from .picture import SHOTS
from .reading import BROWSER, crawl, read
from .showcase import TASK, Showcase, key

SCRIPT = "<script>alert(1)</script>\"'><img/src=x/onerror=alert(2)>"
HOSTILE = (
    "<script>document.title='run'</script><img src=https://tracker.example/a.png onerror=alert(1)>"
    " [x](javascript:alert(1)) ![y](https://tracker.example/b.png) <svg onload=alert(1)>"
    " <style>*{background:url(https://tracker.example/c.png)}</style> "
)
WIDE = "a_very_long_word_without_any_place_to_break" * 20
ELEMENTS = {
    "html", "head", "meta", "title", "link", "body", "a", "header", "nav", "main", "footer", "p",
    "h1", "h2", "h3", "section", "article", "div", "span", "b", "strong", "em", "s", "code", "pre",
    "bdi", "time", "br", "hr", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "thead",
    "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "desc", "line", "path", "circle",
    "text", "blockquote",
}  # fmt: skip
"""All that our templates, and posts, are made of."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Showcase]:
    """A search, and what somebody wrote who means no good; no test changes it."""
    with Showcase.served(tmp_path_factory.mktemp("pages")) as case:
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
def answers(shown: Showcase) -> dict[str, Answer]:
    """Everything on it that a link leads to."""
    return crawl(shown.hub)


@pytest.fixture(scope="module")
def pages(answers: dict[str, Answer]) -> dict[str, Answer]:
    return {path: answer for path, answer in answers.items() if is_page(answer)}


def is_page(answer: Answer) -> bool:
    return answer.headers["content-type"].startswith("text/html")


def get(hub: Hub, path: str, *words: str) -> Answer:
    if not words:
        return ask("GET", hub.url + path, Accept=BROWSER)
    return curl("-H", f"Accept: {BROWSER}", *words, hub.url + path)


def row_of(answer: Answer, words: str) -> str:
    (row,) = [row for row in re.findall(r"<tr.*?</tr>", answer.body.decode()) if words in row]
    return row


# ── what they show ──────────────────────────────────────────────────────────────────────────


def test_states_are_told_apart_by_word_and_sign_and_not_by_colour_alone(shown: Showcase) -> None:
    front = get(shown.hub, "/")
    for words, state in (
        ("no weight decay at all", "✗</span> refuted (2)"),
        ("longer warmdown", "✓</span> reproduced (2)"),
        ("narrower MLP, one more layer", "○</span> claimed"),
    ):
        assert state in row_of(front, f"<bdi>{words}</bdi>")
    best = row_of(front, "<bdi>narrower MLP, one more layer</bdi>")
    assert "★</span> best" in best
    assert 'href="/agents/h100-c"' in best and 'href="/commits/' in best and "<time" in best
    assert front.body.count("★</span> best</strong></td>".encode()) == 3  # one for each platform
    assert b"Best val_bpb on H100 over time" in front.body


def test_counts_are_those_of_the_api(shown: Showcase) -> None:
    agent = shown.agents["h100-a"]
    rows = agent.get("/api/results?limit=1000")
    words = read(get(shown.hub, "/")).words
    counts = {
        state: sum(row["state"] == state and row["verifies"] is None for row in rows)
        for state in ("reproduced", "claimed", "refuted")
    }
    counts["checks"] = sum(row["verifies"] is not None for row in rows)
    counts["commits"] = shown.commits
    for name, number in counts.items():
        assert re.search(rf"{name}\s*{number}\b", words), (name, number)


def test_the_tree_shows_leaves_parents_and_results(shown: Showcase) -> None:
    agent = shown.agents["h100-a"]
    leaves = {row["hash"] for row in agent.get("/api/git/leaves")}
    page = get(shown.hub, "/commits").body.decode()
    rows = re.findall(r"<li>.*?</li>", page, re.DOTALL)
    assert len(rows) == shown.commits and page.count("</svg>") == shown.commits
    for row in rows:
        name = re.search(r'href="/commits/([0-9a-f]{40})"', row)
        assert name and ("◆</span> leaf" in row) == (name[1] in leaves)
    assert "reproduced (2)" in next(row for row in rows if "longer warmdown</bdi>" in row)
    frontier = get(shown.hub, "/commits?show=frontier").body.decode()
    assert set(re.findall(r'what"><a href="/commits/([0-9a-f]{40})"', frontier)) == leaves


def test_a_commit_has_results_checks_lineage_children_and_its_diff(shown: Showcase) -> None:
    agent = shown.agents["h100-a"]
    (row,) = [row for row in agent.get("/api/git/commits") if row["message"] == "longer warmdown"]
    short = get(shown.hub, f"/commits/{row['hash'][:7]}")
    assert short.status == 307 and short.headers["location"] == f"/commits/{row['hash']}"
    page = get(shown.hub, f"/commits/{row['hash']}")
    html, words = unescape(page.body.decode()), read(page).words
    assert '<span class="removed">-WARMDOWN_RATIO = 0.3\n</span>' in html
    assert '<span class="added">+WARMDOWN_RATIO = 0.6\n</span>' in html
    assert words.count("✓ reproduced (2)") == 1 and words.count("✓ reproduces") == 2
    for one in agent.get(f"/api/git/commits/{row['hash']}/children"):
        assert f"/commits/{one['hash']}" in html
    for one in agent.get(f"/api/git/commits/{row['hash']}/lineage"):
        assert f"/commits/{one['hash']}" in html or one["hash"] == row["hash"]


def test_an_agent_has_its_commits_results_and_posts(shown: Showcase) -> None:
    words = read(get(shown.hub, "/agents/h100-c")).words
    for one in ("narrower MLP, one more layer", "half the batch", "What three days say", "#7"):
        assert one in words


def test_replies_stand_below_what_they_answer(shown: Showcase) -> None:
    page = get(shown.hub, "/channels/discussion").body.decode()
    order = [
        (int(depth), text)
        for depth, text in re.findall(
            r'<article class="post depth-(\d)".*?<div class="words"><p>(.{9})', page, re.DOTALL
        )
    ]
    assert order == [
        (0, "<strong>W"), (1, "On the L4"), (2, "+1 here, "), (1, "Which see"), (2, "3 and 4, "),
        (2, "Then mine"),
    ]  # fmt: skip


# ── long lists ──────────────────────────────────────────────────────────────────────────────


def test_ten_thousand_commits_come_in_pieces(start: Start, tmp_path: Path) -> None:
    home = DataFolder(tmp_path / "many")
    database = Database(home.database)
    names = [f"{number:040x}" for number in range(10_000)]
    many = [
        NewCommit(name, "0" * 40, (names[place // 2],) if place else (), f"number {place}")
        for place, name in enumerate(names)
    ]
    commit_index.record(database, "a push", "ada", many)
    database.close()
    hub, seen = start(data=tmp_path / "many"), list[str]()
    for number in (1, 2, 50, 100):
        page = get(hub, f"/commits?page={number}")
        messages = re.findall(r"<bdi>(number \d+)</bdi>", page.body.decode())
        assert 0 < len(messages) == COMMITS <= 200
        seen += messages
    assert seen[0] == "number 9999" and seen[-1] == "number 0" and len(set(seen)) == 400
    assert "5,000 commits" in read(get(hub, "/commits?show=frontier")).words
    assert "/commits?page=101" not in read(page).links


def test_a_page_that_is_none_is_refused_and_one_too_far_leads_back(shown: Showcase) -> None:
    for wrong in ("0", "-1", "x", "1" * 30, "²"):
        answer = get(shown.hub, "/commits", "-G", "--data-urlencode", f"page={wrong}")
        assert answer.status == 400 and b"page must be a number" in answer.body, wrong
    far = get(shown.hub, "/commits?page=999")
    assert far.status == 200 and "/commits?page=1" in read(far).links


def test_long_threads_go_on_on_a_page_of_their_own(start: Start) -> None:
    hub = start("--posts", "1000")
    agent = hub.agent("ada")
    agent.send("/api/channels", {"name": "talk"})
    root = agent.send("/api/channels/talk/posts", {"content": "the first"}).json["id"]
    last = root
    for number in range(12):
        body = {"content": f"below {number}", "parent_id": last}
        last = agent.send("/api/channels/talk/posts", body).json["id"]
    for number in range(110):
        agent.send("/api/channels/talk/posts", {"content": f"wide {number}", "parent_id": root})
    channel = get(hub, "/channels/talk")
    assert channel.body.count(b"<article") == 11 and f"/posts/{root}" in read(channel).links
    assert b"More replies" in channel.body
    pieces = [get(hub, f"/posts/{root}?page={number}").body.decode() for number in (1, 2)]
    texts = re.findall(r"<p>((?:below|wide) \d+)</p>", "".join(pieces))
    assert len(texts) == len(set(texts)) == 122
    assert f"/posts/{root}?page=2" in pieces[0]


# ── what they keep from doing ───────────────────────────────────────────────────────────────


def test_every_link_leads_somewhere(answers: dict[str, Answer]) -> None:
    kinds = {path.split("?")[0].split("/")[1] for path in answers}
    assert kinds >= {"", "board", "results", "commits", "channels", "posts", "agents", "docs"}
    assert len(answers) > 100
    assert {path: one.status for path, one in answers.items() if one.status != 200} == {}


def test_pages_are_well_made(pages: dict[str, Answer]) -> None:
    for path, answer in pages.items():
        found = read(answer)
        assert found.open == [], path
        assert {name for name, _ in found.elements} <= ELEMENTS, path
        assert found.headings.count(1) == 1 and found.headings[0] == 1, path
        assert all(after <= before + 1 for before, after in pairwise(found.headings)), path
        wide = [one for one in found.all("div") if one.get("class") == "wide"]
        assert len(found.all("caption")) == len(wide), path
        assert found.all("html") == [{"lang": "en"}] and found.all("title"), path
        names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        assert len(names) == len(set(names)), path


def test_every_page_forbids_scripts_and_everything_from_elsewhere(
    shown: Showcase, pages: dict[str, Answer]
) -> None:
    assert "script-src" not in POLICY and "'unsafe" not in POLICY
    errors = [get(shown.hub, path) for path in ("/nowhere", "/commits/zzzz", "/posts/0")]
    for answer in (*pages.values(), *errors):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        for name, attributes in read(answer).elements:
            assert "style" not in attributes and not any(one[:2] == "on" for one in attributes)
            assert name not in ("script", "style", "img", "iframe", "object", "form")
            assert not attributes.get("src")


def test_a_script_in_whatever_an_agent_writes_is_text(start: Start, clone: MakeClone) -> None:
    hub, mine = start(), clone()
    agent = hub.agent("ada")
    name = mine.commit(SCRIPT, train=SCRIPT)
    name = mine.commit(SCRIPT, train=SCRIPT + "again")
    assert agent.push(mine.bundle()).status == 201
    sent = [
        ("/api/channels", {"name": "results", "description": SCRIPT}),
        ("/api/channels/results/posts", {"content": SCRIPT}),
        ("/api/channels/results/posts", {"content": SCRIPT, "parent_id": 1}),
        ("/api/channels/results/posts", {"content": f"commit:{name[:7]} platform:<script>x</script>"
                                                    f" val_bpb:1 | {SCRIPT}"}),
        ("/api/tasks", {"task_hash": "a" * 64, "name": SCRIPT, "metric": SCRIPT,
                        "direction": "maximize", "min_delta": 0.1, "profile": SCRIPT}),
        *(("/api/results", {
            "name": SCRIPT + str(number), "commit": name, "platform": SCRIPT.replace(" ", ""),
            "platform_key": "b" * 64, "task_hash": "a" * 64, "metric": SCRIPT, "value": number,
            "status": "keep", "description": SCRIPT, "reason": SCRIPT,
        }) for number in (1, 2)),
        ("/api/claims", {"platform_key": "b" * 64, "task_hash": "a" * 64, "lease_seconds": 600,
                         "tree": "n1:" + "c" * 40, "title": SCRIPT}),
    ]  # fmt: skip
    for path, body in sent:
        answer = agent.send(path, body)
        assert answer.status == 201, answer.body
    pages = crawl(hub)
    assert len(pages) > 20
    shown = set()
    for path, answer in pages.items():
        if not is_page(answer):
            continue
        found = read(answer)
        assert {name for name, _ in found.elements} <= ELEMENTS, path
        assert not any(one[:2] == "on" for _, has in found.elements for one in has), path
        if SCRIPT in found.words:
            shown.add(path)
    some = {"/", "/results", "/results/2", f"/commits/{name}", "/channels", "/channels/results",
            "/posts/1", "/agents/ada"}  # fmt: skip
    assert some <= shown
    for path in ("/channels/%3Cscript%3E", "/nowhere/%3Cscript%3E", "/commits?page=%3Cscript%3E"):
        hostile = get(hub, path)
        assert hostile.status in (400, 404) and b"<script" not in hostile.body


def test_half_a_character_does_not_break_a_page(start: Start) -> None:
    hub = start()
    agent = hub.agent("ada")
    agent(
        "/api/channels", "-X", "POST", "-d", r'{"name":"odd","description":"\ud83d \u0000 \u202e"}'
    )
    answer = agent("/api/channels/odd/posts", "-X", "POST", "-d", r'{"content":"\ud83d x \u202e"}')
    assert answer.status == 201
    for path in ("/channels", "/channels/odd", "/agents/ada", "/posts/1"):
        assert get(hub, path).status == 200, path


# ── what they keep to themselves ────────────────────────────────────────────────────────────


def test_no_page_shows_a_key_or_a_role_or_an_address(
    shown: Showcase, answers: dict[str, Answer]
) -> None:
    with sqlite3.connect(shown.hub.data / "hub.sqlite3") as database:
        hashes = [row[0] for row in database.execute("SELECT key_hash FROM agents")]
    secrets = [*hashes, *(agent.key for agent in shown.agents.values()), ADMIN_KEY, "example.org>"]
    for path, answer in answers.items():
        text = answer.body.decode()
        assert not any(secret in text for secret in secrets), path
        assert path == "/openapi.json" or "127.0.0.1" not in text, path


def test_an_operator_can_close_the_pages_and_wrong_keys_are_counted(start: Start) -> None:
    hub = start("--private-pages")
    agent = hub.agent("ada", "read")
    own = ("-u", f"whoever:{agent.key}")
    for path in ("/", "/commits", "/channels/none", "/agents/ada", "/results/1"):
        answer = get(hub, path)
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic ")
        assert b"<h1>A key is needed</h1>" in answer.body
        assert get(hub, path, "-u", "whoever:wrong").status == 401
    page = get(hub, "/agents/ada", *own)
    assert page.status == 200 and agent.key.encode() not in page.body
    assert get(hub, "/docs").status == get(hub, "/style.css").status == 200
    assert curl(*own, f"{hub.url}/api/channels").status == 401
    with sqlite3.connect(hub.data / "hub.sqlite3") as database:
        for _ in range(300):
            database.execute(
                "INSERT INTO attempts (kind, who, at) VALUES"
                " ('wrong key', 'address 127.0.0.1', strftime('%s', 'now'))"
            )
    answer = get(hub, "/", "-u", "x:wrong")
    assert answer.status == 429 and int(answer.headers["retry-after"]) > 0


# ── diffs for anybody ───────────────────────────────────────────────────────────────────────


def test_diffs_on_pages_are_limited_and_cost_no_agent_its_own(
    start: Start, clone: MakeClone
) -> None:
    hub, mine = start("--page-diffs", "1", "--diffs", "1"), clone()
    agent = hub.agent("ada")
    names = [mine.commit(f"step {number}") for number in range(3)]
    assert agent.push(mine.bundle()).status == 201
    assert b"This is a root" in get(hub, f"/commits/{names[0]}").body
    for _ in range(3):  # made once; then it is there
        assert b"+step 1" in get(hub, f"/commits/{names[1]}").body
    refused = get(hub, f"/commits/{names[2]}")
    assert refused.status == 200 and b"too many attempts" in refused.body
    assert b"step 2" in refused.body and b"+step 2" not in refused.body
    assert agent(f"/api/git/diff/{names[1]}/{names[2]}").status == 200


# ── manners ─────────────────────────────────────────────────────────────────────────────────


def test_errors_are_pages_for_people_and_json_for_programs(shown: Showcase) -> None:
    other_board = f"/board?platform=H200&platform_key={key('H100')}&task_hash={TASK}&metric=val_bpb"
    for path, status in (
        ("/nowhere", 404), ("/commits/zz", 400), ("/commits/0000000", 404), ("/posts/x", 400),
        ("/posts/99999999", 404), ("/results/x", 400), ("/results/99999999", 404),
        ("/channels/none", 404), ("/results?state=odd", 400), ("/agents/%00", 404),
        ("/agents/nobody", 404), (other_board, 404),
    ):  # fmt: skip
        answer = get(shown.hub, path)
        assert answer.status == status, path
        assert is_page(answer) and "/" in read(answer).links, path
        assert ask("GET", shown.hub.url + path).error  # to a program
    assert ask("POST", shown.hub.url + "/").status == 405


def test_a_page_that_did_not_change_is_not_sent_again(shown: Showcase) -> None:
    for path in ("/", "/commits", "/channels/discussion", "/docs"):
        first = get(shown.hub, path)
        again = get(shown.hub, path, "-H", f"If-None-Match: {first.headers['etag']}")
        assert (again.status, again.body) == (304, b""), path
        assert get(shown.hub, path, "-H", 'If-None-Match: "other"').status == 200
        assert curl("-I", shown.hub.url + path).status == 200
    style = read(get(shown.hub, "/")).all("link")[0]["href"]
    assert "immutable" in get(shown.hub, style).headers["cache-control"]


def test_the_api_page_has_every_route_and_no_page_is_one(shown: Showcase) -> None:
    description = get(shown.hub, "/openapi.json").json
    words = read(get(shown.hub, "/docs")).words
    for path, methods in description["paths"].items():
        assert path.startswith("/api/")
        for method in methods:
            assert f"{method.upper()} {path}" in words
    for name in description["components"]["schemas"]["HubResult"]["properties"]:
        assert name in words
    assert not any(link.startswith("http") for link in read(get(shown.hub, "/docs")).links)


def test_both_schemes_can_be_read() -> None:
    """WCAG's contrast of 4.5:1, of every colour of text on everything that it stands on."""
    style = static("style.css").decode()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for ground in ("page", "raised"):
            for name in ("text", "muted", "link", "good", "open", "bad"):
                ratio = contrast(colours[name], colours[ground])
                assert ratio >= 4.5, f"{name} on {ground}: {ratio:.2f}"
        for ground in ("added", "removed"):
            assert contrast(colours["text"], colours[ground]) >= 4.5


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# ── in a real browser ───────────────────────────────────────────────────────────────────────

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="chromium or playwright is not installed",
)


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


@needs_chromium
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


@needs_chromium
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


@needs_chromium
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
