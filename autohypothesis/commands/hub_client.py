"""`hub join`, `hub push`, `hub fetch`: become an agent of a hub; commits to it and from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import print_json, remark, repository_path, say

if TYPE_CHECKING:
    from pydantic import SecretStr

    from autohypothesis.hub.client.credentials import Credentials
    from autohypothesis.hub.client.typed import TypedHub
    from autohypothesis.records.git import Repository

Hash = Annotated[
    str, typer.Argument(metavar="HASH", help="A commit of the hub's; the beginning will do.")
]


def add(group: typer.Typer) -> None:
    group.command("join")(join)
    group.command("push")(push)
    group.command("fetch")(fetch)


def join(
    context: typer.Context,
    server: Annotated[str, typer.Argument(metavar="URL", help="The hub's address.")],
    name: Annotated[
        str | None, typer.Option("--name", help="The agent's; default: this machine's.")
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(
            "--key-file", help="Holds a key that you were given, or ~/.agenthub_creds; `-`: stdin."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Be another agent; old files stay as `.before`.")
    ] = False,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Register with a hub, once. The key stays in `~/.config/autohypothesis`, for its owner only.

    `~/.agenthub_creds` is written too, for the protocol's shell lines. Where registration is
    closed, whoever runs the hub gives you a key.

    Examples: `orchestrator.py hub join http://127.0.0.1:8000 --name my-machine`,
    `orchestrator.py hub join https://hub.example.org --name my-machine --key-file key.txt`
    """
    from autohypothesis.errors import UsageError
    from autohypothesis.hub.client.joining import join as join_hub
    from autohypothesis.records.git import Repository

    common = Repository.find(repository_path(context, repo)).common_dir
    told, key = _given(key_file) if key_file is not None else (None, None)
    if name and told and name != told:
        raise UsageError(
            f"{key_file} holds the key of agent {told}, not of {name}", hint="leave --name out"
        )
    if key is not None and not (name or told):
        raise UsageError("a key is one agent's, and whose is not said", hint="add --name NAME")
    joined = join_hub(server, name or told, key, common, replace=replace)
    found = joined.credentials
    for note in joined.notes:
        remark(f"note: {note}")
    if as_json:
        print_json({"server": found.server, "agent": found.agent, "file": found.source,
                    "registered": joined.registered, "notes": joined.notes})  # fmt: skip
    else:
        say(f"{found.agent} is an agent of {found.server}")
    _refuse_other_search(context, repo, found)


def _refuse_other_search(context: typer.Context, repo: Path | None, found: Credentials) -> None:
    """What is searched here has to be what is searched there, or nothing can be compared."""
    from autohypothesis.engine.project import Project
    from autohypothesis.errors import TaskError
    from autohypothesis.hub.client.typed import TypedHub
    from autohypothesis.hub.fleet.agreement import refuse_other_terms, terms_of

    try:
        project = Project.of_search(repository_path(context, repo))
    except TaskError:
        return  # an agent without a search of its own reads and writes all the same
    refuse_other_terms(TypedHub.of(found), terms_of(project))


def push(
    context: typer.Context,
    commit: Annotated[
        str | None,
        typer.Argument(help="A commit or an experiment; default: the reference, else HEAD."),
    ] = None,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Send a commit to the hub, with as much of its history as the hub lacks.

    Examples: `orchestrator.py hub push`, `orchestrator.py hub push h-nov20-0003-1`
    """
    from autohypothesis.hub.client import sharing

    repository, hub = own_repository(context, repo), connect(context, repo)
    sent = sharing.push(hub, repository, _meant(repository, commit, tag))
    if as_json:
        print_json(sent._asdict())
        return
    said = f"{sent.commit[:7]} is at {hub.server}"
    if not sent.commits:
        say(f"{said} already")
        return
    on = f", on {sent.on[:7]}" if sent.on else ", with all its history"
    much = f"{sent.commits} new commit{'s' * (sent.commits != 1)}, {sent.bytes:,} bytes"
    say(f"{said}: {much}{on}")


def fetch(context: typer.Context, commit: Hash, repo: Repo = None, as_json: Json = False) -> None:
    """Have somebody's commit here, under `refs/hub/`. Nothing is checked out, and nothing is run.

    Example: `orchestrator.py hub fetch a1b2c3d`
    """
    from autohypothesis.hub.client import sharing
    from autohypothesis.hub.client.hub import checked_hash
    from autohypothesis.records.tables import harmless

    checked_hash(commit)
    repository, hub = own_repository(context, repo), connect(context, repo)
    found = sharing.fetch(hub, repository, commit)
    if as_json:
        answer = {"ref": found.ref, "bytes": found.bytes}
        print_json({**found.commit.model_dump(mode="json"), **answer})
        return
    one = found.commit
    who = harmless(f"{one.agent_id}: {one.message}")
    say(f"{one.hash[:7]} by {who}")
    remark(f"look at it: git show {one.hash[:12]}")


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def connect(context: typer.Context, repo: Path | None) -> TypedHub:
    """The hub that is joined here. Outside of a repository the user's own file counts."""
    from autohypothesis.errors import GitError
    from autohypothesis.hub.client import credentials
    from autohypothesis.hub.client.typed import TypedHub

    try:
        common = own_repository(context, repo).common_dir
    except GitError:
        if repo or context.find_root().obj:
            raise
        common = None
    hub = TypedHub.of(credentials.find(common))

    def name_left_out() -> None:
        for problem in hub.left_out:
            remark(f"left out: {problem}")

    context.call_on_close(name_left_out)
    return hub


def own_repository(context: typer.Context, repo: Path | None) -> Repository:
    from autohypothesis.records.git import Repository

    return Repository.find(repository_path(context, repo))


def _meant(repository: Repository, commit: str | None, tag: str | None) -> str:
    """The commit of a revision or an experiment, else of a tag's reference, else HEAD."""
    from autohypothesis.commands.show import meant_tag
    from autohypothesis.engine.project import reference_ref
    from autohypothesis.errors import UsageError
    from autohypothesis.records.git import experiment_ref
    from autohypothesis.records.layout import Layout

    if commit is not None:
        return repository.read_ref(experiment_ref(commit)) or repository.resolve(commit)
    name = meant_tag(Layout(repository.root), tag)
    found = repository.read_ref(reference_ref(name)) if name else None
    if found is None and tag:
        raise UsageError(f"there is no search {tag!r}", hint="leave --tag out for the active one")
    return found or repository.head()


def _given(key_file: str) -> tuple[str | None, SecretStr]:
    """Agent, where it is said, and key; the content of the file is never shown."""
    from autohypothesis.errors import UsageError
    from autohypothesis.hub.client.credentials import read_key
    from autohypothesis.records.secrets import FILE_LIMIT

    try:
        if key_file == "-":
            return read_key(sys.stdin.read(FILE_LIMIT))
        with Path(key_file).expanduser().open(encoding="utf-8", errors="replace") as file:
            return read_key(file.read(FILE_LIMIT))
    except OSError as error:
        raise UsageError(
            f"{key_file} cannot be read: {error.strerror}", hint="`-` reads the key from stdin"
        ) from None
