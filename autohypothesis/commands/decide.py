"""`decide`: settle finished experiments, by the policy or by hand."""

from __future__ import annotations

import getpass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import complete_experiment, err, laboratory, out, print_json

if TYPE_CHECKING:
    from schema import Decision


class Status(str, Enum):
    """What a person may decide."""

    keep = "keep"
    discard = "discard"
    crash = "crash"


def register(app: typer.Typer) -> None:
    app.command("decide")(decide)


def decide(
    context: typer.Context,
    experiment_id: Annotated[
        str | None,
        typer.Argument(help="Default: all that wait.", autocompletion=complete_experiment),
    ] = None,
    status: Annotated[
        Status | None, typer.Argument(help="Your decision; default: the policy's.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Keep or discard what has finished; a keep moves the reference.

    Examples: `orchestrator.py decide`, `orchestrator.py decide h-nov20-0001-1 discard`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine import recovery
    from autohypothesis.engine.settle import settle, settle_by_hand, waiting

    lab = laboratory(context, repo, tag=tag)
    recovery.collect_ended(lab.repository, lab.layout)
    if status is None:
        wanted = [experiment_id] if experiment_id else waiting(lab)
        decisions = settle(lab, wanted, decided_by="policy")
    else:
        decisions = [
            settle_by_hand(
                lab, str(experiment_id), status.value, reason=reason, decided_by=getpass.getuser()
            )
        ]
    refresh(lab.layout)
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in decisions])
    elif decisions:
        for decision in decisions:
            print_decision(decision)
    else:
        err().print("nothing waits for a decision")


def print_decision(decision: Decision) -> None:
    """One line a person can act on."""
    from autohypothesis.terminal.style import styled

    moved = ""
    if decision.reference_after and decision.reference_after != decision.reference_before:
        moved = f"; the reference is now {decision.reference_after[:7]}"
    detail = f" ({decision.detail})" if decision.detail else ""
    out().print(
        f"{decision.experiment_id}: {styled(decision.decision_status)},"
        f" {decision.reason}{detail}{moved}",
        soft_wrap=True,
    )
