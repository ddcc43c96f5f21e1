"""What a hub says, for people. Every word of it is somebody else's, and made harmless first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from autohypothesis.records.tables import harmless, harmless_lines
from autohypothesis.terminal.style import STATE_STYLE, STATUS_STYLE, number
from autohypothesis.terminal.tables import diff_text

QUOTE = "│ "
_WIDEST = 20
"""Characters of a column that never gives way; somebody's name may have more."""


def commits_table(commits: Sequence[Mapping[str, Any]]) -> Table:
    """Commits in the order given. The message gives way where the screen is narrow."""
    return _table(
        ("commit", "on", "agent", "arrived", "message"),
        [
            (
                str(commit["hash"])[:7],
                str(commit["parent_hash"])[:7] or "–",
                str(commit["agent_id"]),
                _time(commit),
                str(commit["message"]),
            )
            for commit in commits
        ],
    )


def channels_table(channels: Sequence[Mapping[str, Any]]) -> Table:
    return _table(
        ("channel", "since", "what for"),
        [
            ("#" + str(channel["name"]), _time(channel), str(channel["description"]))
            for channel in channels
        ],
    )


def posts_text(posts: Sequence[Mapping[str, Any]]) -> Text:
    """Posts in the order given, each behind a bar, so that nothing in one passes for ours."""
    text = Text()
    for post in posts:
        to = f", to {post['parent_id']}" if post.get("parent_id") is not None else ""
        text.append(f"{post['id']}", style="bold")
        text.append(f"  {harmless(str(post['agent_id']))}  {_time(post)}{to}\n")
        for line in harmless_lines(str(post["content"]).rstrip()):
            text.append(QUOTE, style="bright_black")
            text.append(f"{line}\n")
    text.rstrip()
    return text


def foreign_diff(diff: str) -> Text:
    """A diff of other people's commits."""
    return diff_text("\n".join(harmless_lines(diff)))


# ── results ─────────────────────────────────────────────────────────────────────────────────


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Results in the order given, whatever they are results of."""
    return _table(
        ("id", "state", "status", "value", "platform", "commit", "agent", "what"),
        [
            (
                str(result["id"]),
                _state(result),
                _status(result),
                f"{result['metric']} {number(result['value'])}",
                str(result["platform"]),
                *_whose(result),
            )
            for result in results
        ],
        one_line=True,
    )


def board_tables(results: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table for each board; results of one board stand together, in their order."""
    for board, on_it in groupby(results, _board):
        yield _table(
            ("rank", "id", "state", board[-1], "commit", "agent", "what"),
            [
                (
                    str(result["rank"]),
                    str(result["id"]),
                    _state(result),
                    number(result["value"], 6),
                    *_whose(result),
                )
                for result in on_it
            ],
            title=_title(board),
            one_line=True,
        )


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    return _table(
        ("id", "agent", "until", "task", "platform key", "tree", "what"),
        [
            (
                str(claim["id"]),
                str(claim["agent_id"]),
                _time(claim, "expires_at"),
                str(claim["task_hash"])[:7],
                str(claim["platform_key"])[:7],
                str(claim["tree"])[:10],
                str(claim["title"]),
            )
            for claim in claims
        ],
    )


def _whose(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """The last columns of every table of results."""
    told = str(result["description"]) or str(result["name"])
    return str(result["commit"])[:7], str(result["agent_id"]), told


def _state(result: Mapping[str, Any]) -> Text:
    """What others found, and how many of them. An author takes a result back alone."""
    state = str(result["state"])
    agents = result.get(state) if state in ("reproduced", "refuted") else 0
    return Text(
        harmless(f"{state} ×{agents}" if agents else state), STATE_STYLE.get(state, "")
    )  # fmt: skip


def _status(result: Mapping[str, Any]) -> Text:
    status = str(result["status"])
    return Text(harmless(status), STATUS_STYLE.get(status, ""))


def _board(result: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return (
        str(result["platform"]), str(result["platform_key"]), str(result["task_hash"]),
        str(result["metric"]),
    )  # fmt: skip


def _title(board: tuple[str, str, str, str]) -> str:
    platform, key, task, _ = board
    if not (key or task):
        return f"{platform}, as told in posts"
    return f"{platform} (key {key[:7] or '–'}), task {task[:7] or '–'}"


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _time(record: Mapping[str, Any], name: str = "created_at") -> str:
    """To the minute."""
    return harmless(str(record[name]))[:16].replace("T", " ")


def _table(
    names: Sequence[str],
    lines: Sequence[Sequence[str | Text]],
    title: str | None = None,
    one_line: bool = False,
) -> Table:
    """Lines of plain words, which are made harmless here, and of texts that were already.

    On a narrow screen the last column is folded; where each is to stay on `one_line` it gives way.
    """
    table = Table(
        title=Text(harmless(title), "bold") if title else None, title_justify="left", box=None,
        pad_edge=False, header_style="bold",
    )  # fmt: skip
    cells = [
        [one if isinstance(one, Text) else Text(harmless(one)) for one in line] for line in lines
    ]
    for column, name in enumerate(names[:-1]):
        widest = max([len(harmless(name)), *(line[column].cell_len for line in cells)])
        least = min(widest, _WIDEST) if one_line else None
        table.add_column(Text(harmless(name)), no_wrap=True, min_width=least)
    if one_line:
        table.add_column(names[-1], no_wrap=True, overflow="ellipsis", min_width=8)
    else:
        table.add_column(names[-1], overflow="fold", min_width=20)
    for line in cells:
        table.add_row(*line)
    return table
