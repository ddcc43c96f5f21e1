"""No secret of this user's goes to a hub: not in a post, and in no part of a push."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.errors import SecretError
from autohypothesis.hub.client import hub as hub_client
from autohypothesis.hub.client.hub import HubClient
from autohypothesis.records import git_bundle
from autohypothesis.records.git import Repository
from tests.conftest import Cli
from tests.conftest import run_git as git
from tests.hub.client.conftest import StandIn

SECRET = "hf_S3cretS3cretS3cret"


@pytest.fixture(autouse=True)
def token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


def test_words_with_a_secret_are_not_sent(cli: Cli, stand_in: StandIn) -> None:
    assert cli("hub", "join", stand_in.url, "--name", "ada").returncode == 0
    assert cli("hub", "post", "discussion", "hello").returncode == 0
    key = stand_in.keys["ada"]
    for secret, said, words in (
        (SECRET, "$HF_TOKEN", ("post", "discussion", f"look: {SECRET}")),
        (SECRET, "$HF_TOKEN", ("reply", "1", SECRET)),
        (SECRET, "$HF_TOKEN", ("channels", "--create", "ideas", "--description", SECRET)),
        (key, "the hub key in ", ("post", "discussion", f"my key is {key}")),
    ):
        answer = cli("hub", *words)
        assert answer.returncode == 1 and "holds " in answer.stderr and said in answer.stderr
        assert secret not in answer.stderr + answer.stdout
    assert stand_in.posts == ["hello"] and len(stand_in.channels) == 1


def _message(root: Path) -> None:
    git(root, "commit", "-q", "--allow-empty", "-m", f"subject\n\n{SECRET}")


def _file(root: Path) -> None:
    (root / "train.py").write_text(f"# {SECRET}\n")
    git(root, "commit", "-q", "-am", "train")


def _undone(root: Path) -> None:
    """It is in no file of the last commit, and the hub would have it all the same."""
    _file(root)
    (root / "train.py").write_text("# nothing\n")
    git(root, "commit", "-q", "-am", "undone")


def _name(root: Path) -> None:
    (root / "inner").mkdir()
    (root / "inner" / f"{SECRET}.txt").write_text("x")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "name")


def _binary(root: Path) -> None:
    """Beyond the first piece, and across the border of two."""
    before = b"\0\xff" * ((git_bundle._PIECE - 8) // 2)
    (root / "data.bin").write_bytes(before + SECRET.encode() + b"\0" * 100)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "binary")


WHERE = {
    _message: "the message of commit", _file: "train.py", _undone: "train.py",
    _name: "a name in inner", _binary: "data.bin",
}  # fmt: skip


@pytest.mark.parametrize("make", WHERE)
def test_a_push_with_a_secret_is_not_sent(
    make: Callable[[Path], None], hub: HubClient, stand_in: StandIn, foreign: Path
) -> None:
    repository = Repository(foreign)
    assert hub_client.push(hub, repository, repository.head()).commits == 1
    make(foreign)
    head = git(foreign, "rev-parse", "HEAD")
    with pytest.raises(SecretError, match=f"{WHERE[make]}.* holds the value of ") as caught:
        hub_client.push(hub, Repository(foreign), head)
    assert SECRET not in str(caught.value)
    assert len(stand_in.bundles) == 1


def test_what_the_hub_has_already_is_not_searched_again(
    hub: HubClient, stand_in: StandIn, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(foreign)
    monkeypatch.delenv("HF_TOKEN")
    hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (foreign / "more.txt").write_text("fine\n")
    git(foreign, "add", "-A")
    git(foreign, "commit", "-q", "-m", "more")
    sent = hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    assert sent.commits == 1
