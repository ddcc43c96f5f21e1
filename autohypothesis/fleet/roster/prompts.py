"""Pages for the players of a role: prompts, protocols and assignments, from templates.

They are made from the manifest and the queue, replaced whenever those change, and never read back.
What others wrote is quoted line by line, without control characters and cut to a length, so that
no title or rationale can forge a heading, and no page grows past `LIMIT`.
"""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import RecordError
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import markdown_line, plain, templates
from autohypothesis.records.files import load_or_none, read_bytes, set_aside, to_json, write_atomic
from autohypothesis.schema import Manifest, Registry

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = "<!-- made by the fleet, and made again when it changes: write into program.md instead -->"
LIMIT = 24 * 1024
"""Bytes of one page. A model reads it at every turn."""
QUOTED_LINES, QUOTED_CHARACTERS = 40, 3_000
"""Maximum length of one quoted text; its file has the whole."""
LONGEST_LINE = 500
MOST = {"SHOWN": 3, "LISTED": 20, "SETTINGS": 40}
"""Maximum entries of a long list: in full, as a line, and as settings of a hypothesis."""


def write_all(project: Project, manifest: Manifest) -> list[str]:
    """Write every page of a fleet; return remarks about files that were put aside."""
    layout = project.layout
    pages: dict[Path, tuple[str, dict[str, Any]]] = {
        layout.observer_prompt: ("observer-agent", {}),
        layout.tool_builder_prompt: ("tool-builder", {}),
    }
    for role in ("observer", "tool-builder", "gpu-worker"):
        pages[layout.protocol(role)] = (f"protocol-{role}", {})
    for worker in manifest.workers:
        pages[layout.worker_prompt(worker.worker_id)] = ("worker", {"worker": worker})
    notes = _write(project, manifest, pages)
    return notes + write_assignments(project, Queue(layout, manifest.tag), manifest)


def write_assignments(project: Project, queue: Queue, manifest: Manifest) -> list[str]:
    """Write what each role is to do now. A page that says the same is not written again."""
    layout, waiting, running = project.layout, queue.dispatched(), queue.running()
    names = [worker.worker_id for worker in manifest.workers]
    registry = load_or_none(Registry, layout.registry)
    tools = registry.tools if registry is not None else []
    of_observer = {
        "counts": queue.counts(),
        "pending": queue.pending(),
        "idle": [name for name in names if not waiting.get(name) and not running.get(name)],
    }
    requested = [tool for tool in tools if tool.status == "requested"]
    pages: dict[Path, tuple[str, dict[str, Any]]] = {
        layout.assignment("observer"): ("assignment-observer", of_observer),
        layout.assignment("tool-builder"): ("assignment-tool-builder", {"requested": requested}),
    }
    for worker in manifest.workers:
        name = worker.worker_id
        own = {"running": running.get(name, []), "waiting": waiting.get(name, [])}
        pages[layout.worker_assignment(name)] = ("assignment-worker", {"worker": worker, **own})
    return _write(project, manifest, pages)


def _write(
    project: Project, manifest: Manifest, pages: dict[Path, tuple[str, dict[str, Any]]]
) -> list[str]:
    """Write pages from their templates' names and facts."""
    layout = project.layout
    artifacts = ", ".join(map(code, project.task.artifacts[: MOST["LISTED"]]))
    here = {"layout": layout, "manifest": manifest, "artifacts": artifacts}
    here["program"] = program(layout.root)
    notes = []
    for path, (name, facts) in pages.items():
        text = _environment().get_template(f"{name}.md.j2").render({**here, **facts}).rstrip()
        notes += _put(path, _bounded(plain(text + "\n").encode("utf-8", "replace")))
    return notes


def program(root: Path) -> str:
    """Return how the command line is called from `root`."""
    return "python orchestrator.py" if (root / "orchestrator.py").is_file() else "autohypothesis"


def _bounded(page: bytes) -> bytes:
    if len(page) <= LIMIT:
        return page
    cut = page[: LIMIT - 200].decode("utf-8", "ignore").rpartition("\n")[0]
    return f"{cut}\n\n(cut here: the page was too long)\n".encode()


@cache
def _environment() -> Environment:
    environment = templates(Path(__file__).parent / "templates")
    environment.filters.update(
        place=place, quoted=quoted, code=code, shell=lambda text: shlex.quote(str(text))
    )
    environment.globals.update(mark=MARK, **MOST)
    return environment


def place(path: object) -> str:
    """Return a path, whole, as a piece of one line."""
    return _printable(str(path)).replace("|", "/").replace("`", "'")


def code(value: object) -> str:
    """Return a name or a value as inline code."""
    return f"`{markdown_line(value if isinstance(value, str) else to_json(value))}`"


def quoted(text: str) -> str:
    """Return `text` as a block quote: every line of it that is shown begins with `> `."""
    lines = [_printable(line) for line in text[:QUOTED_CHARACTERS].splitlines()]
    left_out = len(text) > QUOTED_CHARACTERS or len(lines) > QUOTED_LINES
    shown = lines[:QUOTED_LINES] + (["(and more, not shown here)"] if left_out else [])
    return "\n".join(f"> {line}".rstrip() for line in shown) or ">"


def _printable(line: str) -> str:
    """Return a line with its indentation, since a patch means something by it."""
    return "".join(c if c.isprintable() else " " for c in line)[:LONGEST_LINE]


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
        aside = set_aside(path)
        notes.append(f"{path} was not made by a fleet; it is {aside.name} now")
    write_atomic(path, page, durable=False)
    return notes
