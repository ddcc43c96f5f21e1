"""The frame around every command: options that several have, exit codes, errors as one line.

Imports nothing heavy, since `--help` and completion run through here.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from typer import Argument, Option
from typer.core import TyperCommand, TyperGroup

from autohypothesis.errors import AutohypothesisError, UsageError
from autohypothesis.installation import as_called, given, missing_extra, note_call, program_name
from autohypothesis.plain import plain, typeable
from autohypothesis.system import CtrlC, keep_others_out
from autohypothesis.terminal.streams import complaint, lost, make_steady

if TYPE_CHECKING:
    from autohypothesis.records.layout import Layout

# Newer releases of typer carry their own copy of click; its exceptions are found from here.
ClickUsageError: Any = typer.BadParameter.__bases__[0]
ClickError: Any = ClickUsageError.__bases__[0]

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

ONLY_SHOW = (
    "show-results", "status", "digest", "runs", "show", "best", "schema", "hypotheses", "briefing",
)  # fmt: skip
"""Commands that only print: they fail when their output cannot be written."""

called = [""]
"""The command of this process."""


# ── options that several commands have ──────────────────────────────────────────────────────


def completion(names: Callable[[Layout], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a completion for the shell: of names in the repository at the current directory."""

    def complete(incomplete: str) -> list[str]:
        from autohypothesis.records.layout import Layout

        return sorted(name for name in names(Layout(Path.cwd())) if name.startswith(incomplete))

    return complete


def _chosen(context: typer.Context, repo: Path | None) -> Path:
    """Return `--repo` after the command, else before it, else the current directory."""
    root = context.find_root()
    root.obj = repo or root.obj
    if repo is not None:
        given["--repo"] = str(repo)
    return root.obj or Path.cwd()


def _searched(tag: str | None) -> str | None:
    """Return the tag that was given, if it is one."""
    from autohypothesis.records.layout import ID

    if tag is None:
        return None
    if not ID.fullmatch(tag):
        near = re.sub(r"[^a-z0-9]+", "-", tag.lower())[:63].strip("-")
        raise UsageError(
            f"--tag {tag!r}: a tag is 1 to 63 characters of a-z, 0-9 and inner '-'",
            hint=f"name it --tag {near or 'mar5'}",
        )
    given["--tag"] = tag
    return tag


complete_experiment = completion(lambda layout: (run.name for run in layout.runs.glob("*")))

HERE = cast("Path", None)
"""The default of `Repo`, which becomes the current directory."""
Repo = Annotated[
    Path,
    Option(
        "--repo",
        help="The repository; default: the one of the current directory.",
        callback=_chosen,
    ),
]
Json = Annotated[bool, Option("--json", help="One JSON document on stdout.")]
Tag = Annotated[
    str | None, Option("--tag", help="The search; default: the active one.", callback=_searched)
]
NewTag = Annotated[
    str | None,
    Option(
        "--tag",
        help="The search; default: the active one, else today's date.",
        callback=_searched,
    ),
]
TaskFile = Annotated[Path | None, Option("--task", help="A task file.")]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="NAME=VALUE", help="Set a constant of the reference; repeatable."),
]
ExperimentId = Annotated[
    str, Argument(help="Id of an experiment.", autocompletion=complete_experiment)
]
Gpus = Annotated[
    str | None,
    Option(
        "--gpus",
        metavar="LIST",
        help="Indices or UUIDs, 0,1 for two, 0:1 for a MIG device, or all; default: all.",
    ),
]
CpuWorkers = Annotated[
    int | None, Option("--cpu-workers", metavar="N", help="Workers on a core each.")
]
Proposers = Annotated[
    list[str] | None,
    Option(
        "--proposer",
        metavar="WORD",
        help="search, command:PROGRAM, inbox or a package's own; repeatable, first first.",
    ),
]
Mix = Annotated[
    float | None,
    Option(
        "--mix",
        min=0,
        max=1,
        help="Share of ideas that turn several constants at once; default: once single ones stall.",
    ),
]
ToolCommand = Annotated[
    str | None,
    Option(
        "--tool-command",
        metavar="PROGRAM",
        help="Asked for helper scripts that no catalogue has; default: what the fleet has.",
    ),
]


# ── the application ─────────────────────────────────────────────────────────────────────────


_EXAMPLES = re.compile(r"\s*Examples?: (`[^`]+`(?:,\s+`[^`]+`)*)\.?")
"""In a docstring: `Examples: `one`, `another``."""


class Command(TyperCommand):
    """A command whose help ends with its examples, a line each, as they can be typed."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        text = as_called(inspect.cleandoc(help or ""))
        found = [
            code for group in _EXAMPLES.findall(text) for code in re.findall("`(.+?)`", group, re.S)
        ]
        self.examples = [" ".join(code.split()) for code in found]
        super().__init__(*args, help=_EXAMPLES.sub("", text), **options)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if self.examples:
            print("\n".join([" Examples:", *(f"   {line}" for line in self.examples), ""]))


class Group(TyperGroup):
    """Commands below a word, which by itself shows them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return list(super().parse_args(ctx, args))


class CommandGroup(typer.Typer):
    """Where commands are registered."""

    def __init__(self, *, cls: type[TyperGroup] = Group, **options: Any) -> None:
        super().__init__(
            cls=cls, rich_markup_mode="markdown", pretty_exceptions_enable=False, **options
        )

    def command(  # type: ignore[override]  # the other words pass through
        self, name: str, *, cls: type[TyperCommand] = Command, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return super().command(name, cls=cls, **options)


class PublishedExitCodes(Command):
    """`run-experiment` answers 1 to wrong usage, as published; 2 is its deadline."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except (ClickUsageError, UsageError) as error:
            error.exit_code = 1
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutohypothesisError as error:
            error.exit_code = 1
            raise


app = CommandGroup()
"""What every module of commands registers with; `main.py` looks there for the one that is asked."""


def run_and_exit(app: typer.Typer) -> NoReturn:
    """Run the command line and exit: 0, 1 when it failed, 2 when it was called wrongly."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "autohypothesis")
    note_call()
    prefix = program_name()
    make_steady()
    keep_others_out()
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, CtrlC())
    try:
        code = app(prog_name=program, standalone_mode=False)
    except ClickError as error:
        fail(error.format_message(), error.exit_code, hint=_usage_hint(error, prefix))
    except AutohypothesisError as error:
        fail(error.problem, error.exit_code, hint=error.hint)
    except ModuleNotFoundError as error:
        if not (install := missing_extra(error.name)):
            raise
        problem = f"this command needs {error.name}, which {sys.prefix} does not have"
        fail(problem, 1, hint=f"install it: {install}")
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped by you", INTERRUPTED)
    except RuntimeError as error:
        # Before Python 3.12, a Ctrl-C while a class is made is the cause of another error.
        if isinstance(error.__cause__, KeyboardInterrupt):
            fail("stopped by you", INTERRUPTED)
        raise
    except (OSError, ValueError) as error:
        # The process boundary: a full disk, a folder that may not be written, a damaged record.
        line = " ".join(str(error).split())[:300]  # pydantic takes three
        fail(f"{type(error).__name__}: {line}", 1, hint=f"look around: {prefix} doctor")
    if code == INTERRUPTED:  # newer releases of typer answer with it, older ones raise
        fail("stopped by you", INTERRUPTED)
    code = code if isinstance(code, int) else 0
    if missed := complaint(sys.stdout):
        print(f"note: {missed}", file=sys.stderr)
        code = code or int(called[0] in ONLY_SHOW)
    sys.exit(code)


def fail(problem: str, code: int, *, hint: str = "") -> NoReturn:
    """Print what is wrong and what to run next, in a line on stderr, and exit."""
    line = f"error: {problem.strip().rstrip('.')}" + (f"; {hint}" if hint else "")
    lost(sys.stdout)  # what was printed before comes first
    print(plain(typeable(line, sys.stderr.encoding)), file=sys.stderr)
    sys.exit(code)


def _usage_hint(error: Any, prefix: str) -> str:
    context = getattr(error, "ctx", None)
    words = context.command_path.split()[1:] if context is not None else []
    return f"run `{' '.join([prefix, *words, '--help'])}`"
