"""`tools`: helper scripts are requested, published, adopted, discarded, listed and run."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, CommandGroup, Json, Repo, app, completion
from autohypothesis.commands.common import layout_of, out, print_json, remark, say

if TYPE_CHECKING:
    from rich.table import Table

    from autohypothesis.schema import Tool

# Words behind the tool's name are its own, options included.
ITS_OWN_WORDS = {"ignore_unknown_options": True, "allow_interspersed_args": False}

tools_group = CommandGroup(
    help="Helper scripts: ask for one, publish one, list them, run one.",
)
app.add_typer(tools_group, name="tools")

complete_tool = completion(
    lambda layout: (script.stem for script in layout.published_tools.glob("*.py"))
)
ToolId = Annotated[
    str, Argument(metavar="ID", help="Name of the tool.", autocompletion=complete_tool)
]
Title = Annotated[str, Option("--title", help="A few words; default: the name.")]
Notes = Annotated[str, Option("--notes", help="Why, for the record.")]


@tools_group.command("request")
def request(
    tool_id: ToolId,
    problem: Annotated[str, Option(help="What it is to answer, and why.")],
    title: Title = "",
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Ask the tool-builder for a helper script.

    Example: `orchestrator.py tools request noise --problem "how far does val_bpb move by itself?"`
    """
    from autohypothesis.fleet.toolbuilder import tools

    tool = tools.request(
        layout_of(repo),
        tool_id,
        problem=problem,
        title=title,
        requested_by=getpass.getuser(),
        by_person=True,
    )
    if as_json:
        print_json(tool.model_dump(mode="json"))
    elif tool.status == "requested":
        then = "the tool-builder builds it when `python orchestrator.py up` runs"
        say(f"{tool.tool_id} is requested; {then}")
    else:
        say(f"{tool.tool_id} is {tool.status} already: {tool.usage}")


@tools_group.command("publish")
def publish(
    tool_id: ToolId,
    path: Annotated[Path, Argument(metavar="PATH", help="The script, one Python file.")],
    title: Title = "",
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Publish a script that you wrote, when it passes the checks; an older one is replaced.

    It must parse, import the standard library and our dependencies only, answer `--help` within
    10 s, pass its own `--self-test`, and change nothing in the repository.

    Example: `orchestrator.py tools publish my-noise /tmp/my_noise.py`
    """
    from autohypothesis.fleet.toolbuilder import tools

    tool = tools.publish(
        layout_of(repo),
        tool_id,
        path.absolute(),
        title=title,
        decided_by=getpass.getuser(),
    )
    if as_json:
        print_json(tool.model_dump(mode="json"))
    else:
        say(f"{tool.tool_id} is published: {tool.summary}")
        say(f"run it with `python orchestrator.py {tool.usage}`")


@tools_group.command("adopt")
def adopt(tool_id: ToolId, notes: Notes = "", repo: Repo = HERE) -> None:
    """Record that a published tool is in use.

    Example: `orchestrator.py tools adopt noise --notes "min_delta rests on it"`
    """
    from autohypothesis.fleet.toolbuilder import tools

    tools.decide(layout_of(repo), tool_id, "adopted", decided_by=getpass.getuser(), notes=notes)
    say(f"{tool_id} is adopted")


@tools_group.command("discard")
def discard(tool_id: ToolId, notes: Notes = "", repo: Repo = HERE) -> None:
    """Have a tool run no more; `tools request` or `tools publish` brings it back.

    Example: `orchestrator.py tools discard my-noise`
    """
    from autohypothesis.fleet.toolbuilder import tools

    tools.decide(layout_of(repo), tool_id, "discarded", decided_by=getpass.getuser(), notes=notes)
    say(f"{tool_id} is discarded")


@tools_group.command("list")
def list_tools(repo: Repo = HERE, as_json: Json = False) -> None:
    """List the tools, what they are for, and how often they were called.

    Example: `orchestrator.py tools list --json`
    """
    from autohypothesis.fleet.toolbuilder import tools

    registry = tools.registry(layout_of(repo))
    if as_json:
        print_json(registry.model_dump(mode="json"))
    elif registry.tools:
        out().print(_table(registry.tools))
    else:
        remark(
            "no tools yet; ask for one: python orchestrator.py tools request noise --problem WHY"
        )


@tools_group.command("run", context_settings=ITS_OWN_WORDS)
def run(
    tool_id: ToolId,
    arguments: Annotated[
        list[str] | None, Argument(metavar="ARGS", help="The tool's own words.")
    ] = None,
    limit: Annotated[
        float | None, Option(min=0.1, help="Seconds it may take.  [default: 300]")
    ] = None,
    repo: Repo = HERE,
) -> None:
    """Run a published tool; its own words follow its name.

    Its exit code is passed on, 124 when it took too long. A file that was changed is not run.

    Examples: `orchestrator.py tools run noise`, `orchestrator.py tools run curves --help`
    """
    from autohypothesis.fleet.toolbuilder import tools

    ended = tools.run(
        layout_of(repo),
        tool_id,
        arguments or [],
        timeout_s=limit if limit is not None else tools.RUN_S,
        capture=False,
        cwd=Path.cwd(),
    )
    if ended.exit_code is None:
        limit_s = f"{limit or tools.RUN_S:g} s"
        remark(
            f"{tool_id} took over {limit_s} and was ended; give it more: --limit SECONDS before"
            " its name"
        )
        raise typer.Exit(tools.OUT_OF_TIME)
    # Killed by a signal: as shells count.
    raise typer.Exit(ended.exit_code if ended.exit_code >= 0 else 128 - ended.exit_code)


def _table(tools: list[Tool]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tool", "status", "calls", "failures"):
        count = name in ("calls", "failures")
        table.add_column(name, no_wrap=True, justify="right" if count else "left")
    table.add_column("what for", overflow="fold", min_width=20)
    for tool in tools:
        about = tool.summary or tool.problem or tool.title
        if tool.status == "requested" and tool.notes:
            about = f"{about} ({tool.notes})"
        counts = (str(tool.calls), str(tool.failures))
        cells = (tool.tool_id, tool.status, *counts, " ".join(about.split()))
        table.add_row(*map(Text, cells))
    return table
