"""A hub's answers as tables. All of it was written by others: nothing in it is markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autohypothesis.plain import plain, table_text
from autohypothesis.terminal.parts import STATUS_STYLE, TextTable, diff_text, number

QUOTE = "│ "
WIDEST = 20
STATE_STYLE = {"reproduced": "green", "claimed": "yellow", "refuted": "red"}

Row = Mapping[str, Any]
Rows = Sequence[Row]


def commits_table(commits: Rows) -> RenderableType:
    """Return commits in the order given."""
    rows = [
        (_short(row, "hash"), _short(row, "parent_hash") or "–", str(row["agent_id"]), _time(row),
         str(row["message"]))
        for row in commits
    ]  # fmt: skip
    return TextTable(("commit", "on", "agent", "arrived", "message"), rows, fold=True)


def channels_table(channels: Rows) -> RenderableType:
    rows = [(f"#{row['name']}", _time(row), str(row["description"])) for row in channels]
    return TextTable(("channel", "since", "what for"), rows, fold=True)


def posts_text(posts: Rows) -> RenderableType:
    """Return posts, the oldest first, each behind a bar, so that nothing in row passes for ours."""
    text = Text()
    for post in reversed(posts):
        to = f", to {post['parent_id']}" if post.get("parent_id") is not None else ""
        text.append(f"{post['id']}", style="bold")
        text.append(f"  {table_text(str(post['agent_id']))}  {_time(post)}{to}\n")
        for line in _lines(str(post["content"]).rstrip()):
            text.append(QUOTE, style="bright_black").append(f"{line}\n")
    text.rstrip()
    return text


def foreign_diff(diff: str) -> Text:
    """Return a diff of other people's commits."""
    return diff_text("\n".join(_lines(diff)))


def results_table(results: Rows) -> RenderableType:
    """Return results in the order given, whatever they are results of."""
    rows = [
        (str(row["id"]), _state(row), _status(row), f"{row['metric']} {number(row['value'])}",
         str(row["platform"]), *_whose(row))
        for row in results
    ]  # fmt: skip
    names = ("id", "state", "status", "value", "platform", "commit", "agent", "what")
    return TextTable(names, rows, widest=WIDEST)


def boards(results: Rows) -> RenderableType:
    """Return a table for each board; results of row board stand together, in their order."""
    parts: list[RenderableType] = []
    for (platform, key, task, metric), on_it in groupby(results, _board):
        rows = [
            (str(row["rank"]), str(row["id"]), _state(row), number(row["value"], 6), *_whose(row))
            for row in on_it
        ]
        names = ("rank", "id", "state", metric, "commit", "agent", "what")
        title = f"{platform}, as told in posts"
        if key or task:
            title = f"{platform} (key {key[:7] or '–'}), task {task[:7] or '–'}"
        parts += [Text("")] if parts else []
        parts.append(TextTable(names, rows, title=title, widest=WIDEST))
    return Group(*parts)


def claims_table(claims: Rows) -> RenderableType:
    rows = [
        (str(row["id"]), str(row["agent_id"]), _time(row, "expires_at"), _short(row, "task_hash"),
         _short(row, "platform_key"), str(row["tree"])[:10], str(row["title"]))
        for row in claims
    ]  # fmt: skip
    names = ("id", "agent", "until", "task", "platform key", "tree", "what")
    return TextTable(names, rows, fold=True)


VIEWS: dict[str, Callable[[Rows], RenderableType]] = {
    "commits": commits_table,
    "channels": channels_table,
    "posts": posts_text,
    "results": results_table,
    "boards": boards,
    "claims": claims_table,
}


def _short(record: Row, name: str) -> str:
    return str(record[name])[:7]


def _time(record: Row, name: str = "created_at") -> str:
    """Return a time to the minute."""
    return table_text(str(record[name]))[:16].replace("T", " ")


def _whose(result: Row) -> tuple[str, str, str]:
    """Return the last columns of every table of results."""
    description = str(result["description"]) or str(result["name"])
    return _short(result, "commit"), str(result["agent_id"]), description


def _state(result: Row) -> Text:
    """Return what others found, and how many of them; an author takes a result back alone."""
    state = str(result["state"])
    agents = result.get(state) if state in ("reproduced", "refuted") else 0
    return Text(table_text(f"{state} ×{agents}" if agents else state), STATE_STYLE.get(state, ""))


def _status(result: Row) -> Text:
    status = str(result["status"])
    return Text(table_text(status), STATUS_STYLE.get(status, ""))


def _board(result: Row) -> tuple[str, ...]:
    return tuple(str(result[n]) for n in ("platform", "platform_key", "task_hash", "metric"))


def _lines(text: str) -> list[str]:
    """Foreign text line by line; blanks and quotes stay."""
    return plain(text.replace("\r\n", "\n").expandtabs(4), " ").split("\n")
