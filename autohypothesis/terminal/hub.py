"""What a hub says, for people. Every word of it is somebody else's, and made harmless first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from autohypothesis.records.tables import harmless, harmless_lines
from autohypothesis.terminal.tables import diff_text

QUOTE = "│ "


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


def _time(record: Mapping[str, Any]) -> str:
    """To the minute."""
    return harmless(str(record["created_at"]))[:16].replace("T", " ")


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(names[-1], overflow="fold", min_width=20)
    for line in lines:
        table.add_row(*(Text(harmless(cell)) for cell in line))
    return table
