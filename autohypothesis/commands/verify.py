"""`verify`: is what the records say what was signed?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, Json, Repo, app, complete_experiment
from autohypothesis.commands.common import open_project, opened, print_json, remark, say
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.verify import Finding, Verification


@app.command("verify")
def verify(
    experiment_id: Annotated[
        str | None,
        Argument(help="Id of an experiment.", autocompletion=complete_experiment),
    ] = None,
    every: Annotated[bool, Option("--all", help="All experiments.")] = False,
    key: Annotated[
        list[Path] | None,
        Option("--key", help="A public key to trust, in place of this fleet's; repeatable."),
    ] = None,
    is_rerunning: Annotated[
        bool, Option("--rerun", help="Run it again as well, and compare the values.")
    ] = False,
    is_rescoring: Annotated[
        bool, Option("--rescore", help="Score its kept weights again as well.")
    ] = False,
    is_accepting: Annotated[
        bool,
        Option("--accept", help="Take decisions and references as they are, by your word."),
    ] = False,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Hold bundles, decisions, references and ledger against what the fleet has signed.

    Offline, and nothing is changed. A line for each finding; the exit code is 1 where there is one.
    `--rerun` runs the commit again at its seed, and names a value that differs by `min_delta`.
    `--rescore` has the evaluator score kept weights again: on one machine, the same number.
    `--accept` is for decisions that you know to be lost, or a reference that you moved yourself:
    what it says of them is in the anchor.

    Examples: `orchestrator.py verify --all`, `orchestrator.py verify h-nov20-0001-1 --key it.pub`
    """
    from autohypothesis.engine.verify import verify as verify_records
    from autohypothesis.records.signing import trusted_keys

    if is_accepting:
        _accept(repo)
        return
    if (experiment_id is None) is not every:
        raise UsageError("name one experiment, or all: verify ID, or verify --all")
    repository, layout = opened(repo)
    names = None if experiment_id is None else [experiment_id]
    found = verify_records(repository, layout, trusted_keys(key or ()), names)
    if is_rerunning or is_rescoring:
        if experiment_id is None:
            raise UsageError("one experiment at a time is run or scored again: name it")
        found.findings += _again(repo, experiment_id, is_rescoring, is_rerunning)
    if as_json:
        print_json(
            {
                "signed": found.signed,
                "unattested": found.unattested,
                "decisions": found.decisions,
                "findings": [finding._asdict() for finding in found.findings],
            }
        )
    else:
        _print(found)
    if found.findings:
        raise typer.Exit(1)


def _print(found: Verification) -> None:
    for finding in found.findings:
        say(finding.line)
    older = len(found.unattested)
    also = f", {older} unattested (of an earlier version, or of another tool)" if older else ""
    runs = f"{found.signed} signed run{'s' * (found.signed != 1)}{also}"
    decisions = f"{found.decisions} decision{'s' * (found.decisions != 1)}"
    count = len(found.findings)
    came = f"{count} finding{'s' * (count != 1)}" if count else "all as it was signed"
    say(f"{runs}, {decisions}: {came}")


def _again(repo: Path, experiment_id: str, scores: bool, runs: bool) -> list[Finding]:
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.rerun import rerun, rescore

    project, findings = open_project(repo), []
    if scores:
        again = rescore(project, experiment_id)
        remark(f"its weights, scored again: {again.value}; recorded: {again.first_value}")
        findings.append(again.finding)
    if runs:
        again = rerun(project, experiment_id, ProgressWatch())
        refresh(project.layout)
        remark(f"{again.experiment_id}: {again.value}; recorded: {again.first_value}")
        findings.append(again.finding)
    return [finding for finding in findings if finding is not None]


def _accept(repo: Path) -> None:
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.reference import REFERENCES
    from autohypothesis.engine.verify import Verifier
    from autohypothesis.records.chain import DecisionChain
    from autohypothesis.records.locks import hold
    from autohypothesis.records.signing import trusted_keys

    project = open_project(repo)
    with hold(project.layout, "settle", doing="accepting the records as they are"):
        references = project.repository.refs(REFERENCES)
        lost = Verifier(project.repository, project.layout, trusted_keys()).lost_lines()
        chain = DecisionChain(project.repository, project.layout)
        anchor = chain.accept(references.values(), lost)
    refresh(project.layout)
    if anchor is None:
        raise UsageError("this installation has no key, so nothing is signed")
    say(f"accepted: {anchor.lines} lines of decisions.jsonl, {len(references)} references")
    if anchor.unattested:
        remark(f"and without attestation: {', '.join(anchor.unattested)}")
