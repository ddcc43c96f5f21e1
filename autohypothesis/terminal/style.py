"""Words to colours, once. Named colours only, so that dark and light terminals both read well."""

from __future__ import annotations

STATUS_STYLE = {
    "keep": "green",
    "discard": "bright_black",
    "crash": "red",
    "lost": "yellow",
    "replicate": "cyan",
    "review_pending": "yellow",
    "planned": "blue",
    "running": "blue",
    "failed": "red",
    "artifact_invalid": "magenta",
    "damaged": "magenta",
}

STATE_STYLE = {"reproduced": "green", "claimed": "yellow", "refuted": "red"}
"""Of a result at a hub."""

# Okabe and Ito's colours, told apart by people who do not tell red from green.
KEEP, DISCARD, CRASH, LINE = "#009E73", "#9A9A9A", "#D55E00", "#0072B2"


def styled(status: str) -> str:
    """`status` in rich markup."""
    style = STATUS_STYLE.get(status)
    return f"[{style}]{status}[/]" if style else status


def number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """A measurement for a table; an en dash where there is none."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
