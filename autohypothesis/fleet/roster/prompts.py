"""Pages for the players of a role: prompts, protocols and assignments, from templates.

They are made from the manifest and the queue, replaced whenever those change, and never read back.
What others wrote is quoted line by line, without control characters and cut to a length, so that
no title or rationale can forge a heading, and no page grows past `LIMIT`.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import RecordError
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import markdown_line, plain, templates
from autohypothesis.records.files import load_or_none, read_bytes, to_json, write_atomic
from autohypothesis.schema import Hypothesis, Manifest, Registry

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = "<!-- made by the fleet, and made again when it changes: write into program.md instead -->"
LIMIT = 24 * 1024
"""Bytes of one page. A model reads it at every turn."""
QUOTED_LINES, QUOTED_CHARACTERS = 40, 3_000
"""Of one quoted text; the whole of it stands in the file that it is from."""
LONGEST_LINE = 500
SHOWN = 3
"""Hypotheses in full on a worker's page."""
LISTED = 20
SETTINGS = 40


def write_all(project: Project, manifest: Manifest) -> list[str]:
    """Write every page of a fleet; return remarks about files that were put aside."""
    layout, facts = project.layout, _facts(project, manifest)
    pages = {
        layout.observer_prompt: _page("observer-agent", facts),
        layout.tool_builder_prompt: _page("tool-builder", facts),
    }
    for role in ("observer", "tool-builder", "gpu-worker"):
        pages[layout.protocol(role)] = _page(f"protocol-{role}", facts)
    for worker in manifest.workers:
        own = {"worker": worker, "assignment": place(layout.worker_assignment(worker.worker_id))}
        pages[layout.worker_prompt(worker.worker_id)] = _page("worker", {**facts, **own})
    return _put_all(pages) + write_assignments(project, Queue(layout, manifest.tag), manifest)


def write_assignments(project: Project, queue: Queue, manifest: Manifest) -> list[str]:
    """Write what each role is to do now. A page that says the same is not written again."""
    layout, facts = project.layout, _facts(project, manifest)
    waiting, running, pending = queue.dispatched(), queue.running(), queue.pending()
    names = [worker.worker_id for worker in manifest.workers]
    idle = [name for name in names if not waiting.get(name) and not running.get(name)]
    registry = load_or_none(Registry, layout.registry)
    tools = registry.tools if registry is not None else []
    requested = [tool for tool in tools if tool.status == "requested"]
    of_observer = {
        "counts": queue.counts(),
        "idle": idle[:LISTED],
        "hidden_idle": len(idle[LISTED:]),
        "pending": pending[:LISTED],
        "more": len(pending[LISTED:]),
    }
    of_builder = {"requested": requested[:SHOWN], "more": len(requested[SHOWN:])}
    pages = {
        layout.assignment("observer"): _page("assignment-observer", {**facts, **of_observer}),
        layout.assignment("tool-builder"): _page(
            "assignment-tool-builder", {**facts, **of_builder}
        ),
    }
    for worker in manifest.workers:
        own = waiting.get(worker.worker_id, [])
        of_worker = {
            "worker": worker,
            "running": running.get(worker.worker_id, [])[:SHOWN],
            "waiting": own[:SHOWN],
            "more": len(own[SHOWN:]),
        }
        path = layout.worker_assignment(worker.worker_id)
        pages[path] = _page("assignment-worker", {**facts, **of_worker})
    return _put_all(pages)


# ── facts of the pages ──────────────────────────────────────────────────────────────


def _facts(project: Project, manifest: Manifest) -> dict[str, Any]:
    layout = project.layout
    return {
        "mark": MARK,
        "tag": manifest.tag,
        "root": place(layout.root),
        "research": place(layout.research),
        "program": program(layout.root),
        "charter": place(layout.program),
        "steering": place(layout.steering),
        "manifest": place(layout.manifest),
        "artifacts": ", ".join(map(code, project.task.artifacts[:LISTED])),
        "workers": manifest.workers[:LISTED],
        "hidden_workers": len(manifest.workers[LISTED:]),
        "observer_protocol": place(layout.protocol("observer")),
        "builder_protocol": place(layout.protocol("tool-builder")),
        "worker_protocol": place(layout.protocol("gpu-worker")),
        "observer_assignment": place(layout.assignment("observer")),
        "builder_assignment": place(layout.assignment("tool-builder")),
    }


def program(root: Path) -> str:
    """Return how the command line is called from `root`."""
    return "python orchestrator.py" if (root / "orchestrator.py").is_file() else "autohypothesis"


# ── making a page ──────────────────────────────────────────────────────────────────────


def _page(name: str, facts: Mapping[str, Any]) -> bytes:
    text = _environment().get_template(f"{name}.md.j2").render(facts).rstrip() + "\n"
    content = plain(text).encode("utf-8", "replace")
    if len(content) <= LIMIT:
        return content
    cut = content[: LIMIT - 200].decode("utf-8", "ignore").rpartition("\n")[0]
    return f"{cut}\n\n(cut here: the page was too long)\n".encode()


@cache
def _environment() -> Environment:
    environment = templates(Path(__file__).parent / "templates")
    environment.filters.update(
        place=place, quoted=quoted, code=code, shell=lambda text: shlex.quote(str(text))
    )
    environment.globals["settings"] = _settings
    return environment


def place(path: object) -> str:
    """A path, whole, as a piece of one line."""
    return one_line_of_many(str(path)).replace("|", "/").replace("`", "'")


def code(value: object) -> str:
    """A name or a value as inline code."""
    return f"`{markdown_line(value if isinstance(value, str) else to_json(value))}`"


def quoted(text: str) -> str:
    """`text` as a block quote: every line of it, as far as it is shown, begins with `> `."""
    lines = [one_line_of_many(line) for line in text[:QUOTED_CHARACTERS].splitlines()]
    left_out = len(text) > QUOTED_CHARACTERS or len(lines) > QUOTED_LINES
    shown = lines[:QUOTED_LINES] + (["(and more, not shown here)"] if left_out else [])
    return "\n".join(f"> {line}".rstrip() for line in shown) or ">"


def one_line_of_many(line: str) -> str:
    """A line with its indentation, since a patch means something by it."""
    return "".join(c if c.isprintable() else " " for c in line)[:LONGEST_LINE]


def _settings(one: Hypothesis) -> list[tuple[str, Any]]:
    return list(one.config_overrides.items())[:SETTINGS]


def _put_all(pages: Mapping[Path, bytes]) -> list[str]:
    return [note for path, page in pages.items() for note in _put(path, page)]


def _put(path: Path, page: bytes) -> list[str]:
    """Write a page where it says something new. A file that is not ours is put aside first."""
    notes = []
    try:
        before = read_bytes(path, 4 * LIMIT)
        if before == page:
            return []
        foreign = not before.startswith(MARK.encode())
    except FileNotFoundError:
        foreign = False
    except RecordError:
        foreign = True
    if foreign:
        aside = path.with_name(f"{path.name}.set-aside-{time.time_ns()}")
        os.rename(path, aside)
        notes.append(f"{path} was not made by a fleet; it is {aside.name} now")
    write_atomic(path, page, durable=False)
    return notes
