"""The page at `/`: what is here, for somebody who has only a browser."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader

from autohypothesis.hub.server import board, commits
from autohypothesis.hub.server.hub import Hub

_COMMITS = 30


@lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = PackageLoader("autohypothesis.hub.server", "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def index(hub: Hub) -> str:
    """HTML; whatever agents wrote is escaped."""
    return _environment().get_template("index.html.j2").render(
        channels=board.all_channels(hub.database),
        commits=commits.newest(hub.database, None, _COMMITS, 0),
        open=hub.settings.open_registration,
    )  # fmt: skip
