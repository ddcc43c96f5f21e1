"""No secret of this user's goes to a hub: not in a post, and in no part of a push."""

from __future__ import annotations

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


def _commit(root: Path, message: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)


IN_A_FILE = ("train", {"train.py": f"# {SECRET}\n".encode()})
BEYOND_THE_FIRST_PIECE = b"\0\xff" * ((git_bundle._PIECE - 8) // 2) + SECRET.encode() + bytes(100)
HISTORIES: list[tuple[str, list[tuple[str, dict[str, bytes]]]]] = [
    ("the message of commit", [(f"subject\n\n{SECRET}", {})]),
    ("train.py", [IN_A_FILE]),
    ("train.py", [IN_A_FILE, ("undone", {"train.py": b"# nothing\n"})]),
    ("a name in inner", [("name", {f"inner/{SECRET}.txt": b"x"})]),
    ("data.bin", [("binary", {"data.bin": BEYOND_THE_FIRST_PIECE})]),
]
"""Where the secret is, and the commits; one that was undone the hub would have all the same."""


@pytest.mark.parametrize(("where", "commits"), HISTORIES, ids=range(5))
def test_a_push_with_a_secret_is_not_sent(
    where: str, commits: list[tuple[str, dict[str, bytes]]], hub: HubClient, stand_in: StandIn,
    foreign: Path,
) -> None:  # fmt: skip
    repository = Repository(foreign)
    assert hub_client.push(hub, repository, repository.head()).commits == 1
    for message, files in commits:
        _commit(foreign, message, files)
    with pytest.raises(SecretError, match=f"{where}.* holds the value of ") as caught:
        hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    assert SECRET not in str(caught.value)
    assert len(stand_in.bundles) == 1


def test_what_the_hub_has_already_is_not_searched_again(
    hub: HubClient, stand_in: StandIn, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _commit(foreign, *IN_A_FILE)
    monkeypatch.delenv("HF_TOKEN")
    hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    _commit(foreign, "more", {"more.txt": b"fine\n"})
    sent = hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    assert sent.commits == 1
