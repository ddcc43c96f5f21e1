"""The checks that a helper script passes before it is published.

It parses, has a docstring, imports the standard library and our dependencies only, answers
`--help`, passes its own `--self-test`, and writes nothing below the repository.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from autohypothesis.engine.program import ProgramEnd
from autohypothesis.errors import ToolError
from autohypothesis.fleet.toolbuilder import guard
from autohypothesis.fleet.toolbuilder.launch import Script, run_script
from autohypothesis.installation import program_script
from autohypothesis.records.layout import Layout

SUMMARY_LENGTH = 200
USAGE_LENGTH = 400
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class TrialLimits(NamedTuple):
    """Seconds that a script may take for each of its trials."""

    help_s: float = 10.0
    self_test_s: float = 60.0
    trial_s: float = 60.0


class Checked(NamedTuple):
    """The fields of a tool that follow from its script."""

    sha256: str
    summary: str
    """The first line of its docstring."""
    usage: str


def check(
    layout: Layout,
    tool_id: str,
    source: bytes,
    *,
    limits: TrialLimits | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Checked:
    """Put `source` through all checks, on a private copy.

    Raises:
        ToolError: naming the failed check and what the script did.
    """
    limits = limits or TrialLimits()
    tree = _parsed(tool_id, source)
    summary = (ast.get_docstring(tree) or "").strip().partition("\n")[0].strip()
    if not summary:
        raise _refused(tool_id, "has no docstring that says what it is for")
    _check_imports(tool_id, tree)
    digest = sha256(source).hexdigest()
    try:
        with tempfile.TemporaryDirectory(prefix="tool-") as folder:
            script = Script(Path(folder, f"{tool_id}.py"), digest)
            script.path.write_bytes(source)
            trial = _Trial(layout, tool_id, script, cancelled)
            usage = _usage(tool_id, trial.passes("--help", limits.help_s).out)
            trial.passes("--self-test", limits.self_test_s)
            # A script that needs arguments may refuse this; it must only end, and change nothing.
            trial.ends("--json", limits.trial_s)
    except OSError as error:
        raise ToolError(
            f"tool {tool_id!r} cannot be checked: {error}", hint="see `df -h` and `ulimit -a`"
        ) from error
    return Checked(digest, summary[:SUMMARY_LENGTH], usage)


# ── by reading the script ───────────────────────────────────────────────────────────────────


def _parsed(tool_id: str, source: bytes) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise _refused(tool_id, f"is no Python: {error}{where}") from None


def _check_imports(tool_id: str, tree: ast.Module) -> None:
    allowed = allowed_modules()
    for name, line in _imports(tree):
        if name.split(".")[0] not in allowed:
            what = f"imports {name!r}" if name else "imports a name that is only known when it runs"
            raise _refused(
                tool_id,
                f"{what} in line {line}; allowed are the standard library and "
                f"{', '.join(sorted(allowed - sys.stdlib_module_names))}",
            )


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield imported modules with their lines; an empty name for one that only a run shows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno
        elif isinstance(node, ast.Call) and _is_import(node.func):
            first = node.args[0] if node.args else None
            text = first.value if isinstance(first, ast.Constant) else None
            yield text if isinstance(text, str) else "", node.lineno


def _is_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("__import__", "import_module")


@cache
def allowed_modules() -> frozenset[str]:
    """Return the import names of the standard library and of our direct dependencies."""
    return frozenset(sys.stdlib_module_names).union(*map(_modules_of, _dependencies()))


def _dependencies() -> set[str]:
    """Return the names of the distributions that we depend on, those of our extras included.

    A checkout's pyproject.toml counts as well: an editable install keeps the metadata of its day.
    """
    try:
        required = importlib.metadata.requires("autohypothesis") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    return {name[0] for name in map(_NAME.match, [*required, *_from_checkout()]) if name}


def _from_checkout() -> list[str]:
    page = program_script().with_name("pyproject.toml")
    if sys.version_info < (3, 11) or not page.is_file():
        return []
    import tomllib

    project = tomllib.loads(page.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != "autohypothesis":
        return []
    extras = project.get("optional-dependencies", {}).values()
    return list(map(str, chain(project.get("dependencies", []), *extras)))


def _modules_of(distribution: str) -> set[str]:
    try:
        metadata = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return set()
    if listed := metadata.read_text("top_level.txt"):
        return set(listed.split())
    parts = (Path(file) for file in metadata.files or [] if file.suffix == ".py")
    names = {path.parts[0].removesuffix(".py") for path in parts}
    return {name for name in names if name.isidentifier()}


# ── by running the script ───────────────────────────────────────────────────────────────────


class _Trial(NamedTuple):
    """One script, run with different options in a repository that it may only read."""

    layout: Layout
    tool_id: str
    script: Script
    cancelled: Callable[[], bool]

    def passes(self, option: str, limit_s: float) -> ProgramEnd:
        ended = self.ends(option, limit_s)
        if ended.exit_code != 0:
            raise _refused(
                self.tool_id,
                f"answers {option} with exit code {ended.exit_code}: {ended.last_words()}",
            )
        return ended

    def ends(self, option: str, limit_s: float) -> ProgramEnd:
        ended = run_script(
            self.script,
            ["--research", str(self.layout.research), option],
            read_only=[self.layout.root],
            timeout_s=limit_s,
            cwd=self.script.path.parent,
            cancelled=self.cancelled,
        )
        if ended.exit_code == guard.WROTE:
            marked = [line for line in ended.err.splitlines() if line.startswith("refused: ")]
            what = marked[0].removeprefix("refused: ") if marked else ended.last_words()
            raise _refused(self.tool_id, f"changes the research with {option}: {what}")
        if ended.exit_code is None and self.cancelled():
            raise ToolError(f"the checks of tool {self.tool_id!r} were stopped")
        if ended.exit_code is None:
            raise _refused(self.tool_id, f"does not end {option} within {limit_s:g} s")
        return ended


def _usage(tool_id: str, page: str) -> str:
    """Return how a script is called, from the first paragraph of its help."""
    first = page.strip().split("\n\n")[0].removeprefix("usage:")
    words = " ".join(first.split()).replace(f"{tool_id}.py", "", 1).replace("[-h]", "", 1)
    words = re.sub(r"\[?--research \S+\]?", "", words, count=1)
    return f"tools run {tool_id} {' '.join(words.split())}"[:USAGE_LENGTH].strip()


def _refused(tool_id: str, why: str) -> ToolError:
    return ToolError(
        f"tool {tool_id!r} {why}",
        hint=f"mend it, then `python orchestrator.py tools publish {tool_id} PATH`",
    )
