"""Runs helper scripts, and checks one before it is published.

A script parses, has a docstring, imports the standard library and our dependencies only, answers
`--help`, passes its own `--self-test`, and writes nothing below the repository. Wherever it runs,
research/ is read-only to it, its time is limited, and all of it ends.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from autohypothesis import sandbox
from autohypothesis.engine import program
from autohypothesis.engine.environment import INHERITED, THREAD_VARIABLES
from autohypothesis.errors import ToolError
from autohypothesis.fleet.toolbuilder import guard
from autohypothesis.records.layout import Layout

HELP_S = 10.0
TRIAL_S = 60.0
"""Seconds for `--self-test`, and for `--json`."""
SUMMARY_LENGTH = 200
USAGE_LENGTH = 400
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def check(
    layout: Layout, tool_id: str, source: bytes, *, cancelled: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """Put `source` through all checks, on a private copy; return sha256, summary and usage.

    Raises:
        ToolError: naming the failed check and what the script did.
    """
    tree = _parsed(tool_id, source)
    summary = (ast.get_docstring(tree) or "").strip().partition("\n")[0].strip()
    if not summary:
        raise _refused(tool_id, "has no docstring that says what it is for")
    _check_imports(tool_id, tree)
    digest = sha256(source).hexdigest()
    try:
        with tempfile.TemporaryDirectory(prefix="tool-") as folder:
            path = Path(folder, f"{tool_id}.py")
            path.write_bytes(source)

            def passes(option: str, limit_s: float) -> program.ProgramEnd:
                ended = run_script(
                    path, digest, ["--research", str(layout.research), option],
                    read_only=layout.root, cwd=path.parent, timeout_s=limit_s, cancelled=cancelled,
                )  # fmt: skip
                if ended.exit_code is None and cancelled():
                    raise ToolError(f"the checks of tool {tool_id!r} were stopped")
                if why := _failure(option, limit_s, ended):
                    raise _refused(tool_id, why)
                return ended

            usage = _usage(tool_id, passes("--help", HELP_S).out)
            passes("--self-test", TRIAL_S)
            passes("--json", TRIAL_S)
    except OSError as error:
        raise ToolError(
            f"tool {tool_id!r} cannot be checked: {error}", hint="see `df -h` and `ulimit -a`"
        ) from error
    return {"sha256": digest, "summary": summary[:SUMMARY_LENGTH], "usage": usage}


def _failure(option: str, limit_s: float, ended: program.ProgramEnd) -> str:
    """Return what is wrong with a trial; empty when nothing is."""
    if ended.exit_code == guard.EXIT_WROTE:
        refused = re.search(r"^refused: (.*)", ended.err, re.MULTILINE)
        what = refused[1] if refused else ended.last_words()
        return f"changes the research with {option}: {what}"
    if ended.exit_code is None:
        return f"does not end {option} within {limit_s:g} s"
    # A script that needs arguments may refuse --json; it must only end, and change nothing.
    if ended.exit_code != 0 and option != "--json":
        return f"answers {option} with exit code {ended.exit_code}: {ended.last_words()}"
    return ""


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
        elif isinstance(node, ast.Call) and _name(node.func) in ("__import__", "import_module"):
            first = node.args[0] if node.args else None
            text = first.value if isinstance(first, ast.Constant) else None
            yield text if isinstance(text, str) else "", node.lineno


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@cache
def allowed_modules() -> frozenset[str]:
    """Return the import names of the standard library and of our dependencies, extras included."""
    try:
        required = importlib.metadata.requires("autohypothesis") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    names = {_normal(match[0]) for match in map(_NAME.match, required) if match}
    modules = importlib.metadata.packages_distributions().items()
    ours = {module for module, owners in modules if names & set(map(_normal, owners))}
    return frozenset(sys.stdlib_module_names | ours)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def run_script(
    path: Path,
    digest: str,
    arguments: Sequence[str],
    *,
    read_only: Path,
    cwd: Path,
    timeout_s: float,
    capture: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> program.ProgramEnd:
    """Run a helper script with this Python, behind the guard and in the sandbox.

    Args:
        digest: SHA-256 of the content that may be run.
        read_only: a folder that it may not change.
        capture: without it the script prints where this process prints.

    Raises:
        ToolError: it cannot be started, or prints more than `program.OUT_LIMIT`.
    """
    folder, cwd = read_only.absolute(), cwd.absolute()
    granted = sandbox.SandboxSpec(
        sandbox.best_kind(),
        read=(Path("/"), path, Path(guard.__file__), folder, cwd),
        write=() if cwd == folder or folder in cwd.parents else (cwd,),
        hidden=(
            *sandbox.existing([folder / ".git", folder.parent / ".git"]),
            *sandbox.secret_places(),
        ),
        protected=(folder,) if cwd in folder.parents else (),
    )
    return run_command(
        [sys.executable, guard.__file__, digest, str(folder), str(path), *arguments],
        cwd=cwd,
        environment=_environment(),
        timeout_s=timeout_s,
        capture=capture,
        cancelled=cancelled,
        confined=granted,
    )


def run_command(words: Sequence[str], **how: Any) -> program.ProgramEnd:
    """Run a command as `program.run` does.

    Raises:
        ToolError: it cannot be started, or prints more than `program.OUT_LIMIT`.
    """
    try:
        ended = program.run(words, **how)
    except OSError as error:
        raise ToolError(
            f"{words[0]} does not start: {error}", hint=f"try `{words[0]}` yourself"
        ) from error
    if ended.overflow:
        raise ToolError(f"{words[-1]} prints more than {program.OUT_LIMIT:,} bytes")
    return ended


def _environment() -> dict[str, str]:
    """Return the variables that trainings inherit, without a GPU, which trainings need."""
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    return {
        **inherited,
        "HOME": os.path.expanduser("~"),
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
    }
