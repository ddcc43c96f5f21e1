"""The command line: which module has a command, and how `--help` groups them.

A command's module is imported when the command is asked for; it imports what the command needs when
that runs. So a look at a search waits for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer import Option

from autohypothesis import __version__
from autohypothesis.commands.app import HERE, CommandGroup, Group, Repo, called
from autohypothesis.commands.app import app as registered

PANELS = {
    "Get ready": {
        "doctor": "doctor", "setup": "setup", "init": "init_task", "new": "setup", "demo": "demo",
    },
    "One run": {"run-experiment": "run", "record": "run", "decide": "run"},
    "Many runs": {
        "run-loop": "loop", "up": "fleet", "down": "fleet", "init-fleet": "init",
    },
    "Ideas": {
        "propose": "ideas", "hypotheses": "ideas", "briefing": "ideas", "dispatch": "ideas",
        "withdraw": "ideas", "abandon": "ideas",
    },
    "Look": {
        "status": "show", "digest": "show", "show-results": "show", "runs": "show",
        "show": "show", "best": "show", "monitor": "show", "verify": "verify",
    },
    "Share": {"adopt": "show", "hub": "hub_serve"},
    "Any text": {"task": "task"},
    "Records and helpers": {
        "sync": "sync", "restore": "fleet", "prune": "init", "schema": "show", "tools": "tools",
    },
}  # fmt: skip
"""Every command with its module, by what one wants to do, in the order in which one meets them."""

UNLISTED = {
    "check-hardware": "doctor", "bootstrap": "init",
    "observer": "fleet", "worker": "fleet", "tool-builder": "fleet",
}  # fmt: skip
"""Commands that `--help` leaves out, with their module: published names of what `doctor` and `up`
do as well, and the roles, which `up` starts (docs/fleet.md)."""

HELP = """Search for a better training script, or any other text, and believe the result.

New here: `demo` shows all of it and needs no GPU; `doctor` says what this machine lacks. Your own
search: `up` prepares what is missing and searches on all devices, `run-loop` on one; `status`
says how it stands, `digest` what came out. Your own repository: `init`. `COMMAND --help` ends with
examples. `--repo PATH` may stand before or after the command.
"""


class Loaded(Mapping[str, Any]):
    """Name -> command; one is imported and built when it is asked for."""

    def __iter__(self) -> Iterator[str]:
        yield from (name for names in PANELS.values() for name in names)
        yield from UNLISTED

    def __len__(self) -> int:
        return sum(1 for _ in self)  # `list` asks for the length first

    def __getitem__(self, name: str) -> Any:
        for panel, modules in PANELS.items():
            if name in modules:
                return _built(name, modules[name], panel)
        return _built(name, UNLISTED[name], "")


@cache
def _built(name: str, module: str, panel: str) -> Any:
    """Import the module of a command, or of a group of commands, and build that alone."""
    import_module(f"autohypothesis.commands.{module}")
    group = next((each for each in registered.registered_groups if each.name == name), None)
    if group is not None and group.typer_instance is not None:
        built: Any = typer.main.get_group(group.typer_instance)
    else:
        alone = CommandGroup(add_completion=False)
        commands = registered.registered_commands
        alone.registered_commands = [command for command in commands if command.name == name]
        built = typer.main.get_command(alone)
    built.name, built.rich_help_panel, built.hidden = name, panel, name in UNLISTED
    return built


class Root(Group):
    """The first word of a command line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Loaded()


app = CommandGroup(cls=Root, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autohypothesis {__version__}")
        raise typer.Exit


@app.callback()
def frame(
    context: typer.Context,
    repo: Repo = HERE,
    version: Annotated[
        bool, Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    called[0] = context.invoked_subcommand or ""
