"""Who we are to a hub is read from the right place, kept from others, and never thrown away."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from autohypothesis.errors import HubError, UsageError
from autohypothesis.hub.client import credentials
from autohypothesis.hub.client.credentials import default_name, join
from tests.hub.client.conftest import StandIn

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
AGENTS = st.from_regex(credentials.AGENT, fullmatch=True)


def _config(path: Path, agent: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = f"secret-{agent}"
    said = {"server_url": "http://hub:1/", "api_key": key, "agent_id": agent, "more": 1}
    path.write_text(json.dumps(said))
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def common(tmp_path: Path) -> Path:
    folder = tmp_path / "repo" / ".git"
    folder.mkdir(parents=True)
    return folder


def test_the_nearest_file_counts_and_none_stands_in_for_one_that_is_gone(
    home: Path, common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"no hub is joined here; join one: .* hub join URL"):
        credentials.find(common)
    _config(home / ".agenthub" / "config.json", "users")
    assert credentials.find(common).agent == "users"
    monkeypatch.setenv("AGENTHUB_CONFIG", str(home / "named.json"))
    with pytest.raises(HubError, match=r"named\.json, which is not there"):
        credentials.find(common)
    _config(home / "named.json", "named")
    assert credentials.find(common).agent == "named"
    _config(credentials.own_file(common), "own")
    found = credentials.find(common)
    assert (found.agent, found.server) == ("own", "http://hub:1")
    assert credentials.find(None).agent == "named"


def test_a_damaged_file_is_named_and_not_shown(home: Path, common: Path) -> None:
    _config(home / ".agenthub" / "config.json", "users")
    path = _config(credentials.own_file(common), "own")
    for content in (
        "{", "[]", '{"api_key": "secret"}', "",
        '{"server_url": 1, "agent_id": 2, "api_key": "secret"}',
        '{"server_url": "http://u:secret@h", "agent_id": "a", "api_key": "secret"}',
        '{"server_url": "http://h", "agent_id": "a", "api_key": "secret\\nX-Header: y"}',
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(HubError) as caught:
            credentials.find(common)
        assert str(path) in str(caught.value)
        assert "secret" not in str(caught.value)
    (common / "autohypothesis" / "repository-id").write_text("../../elsewhere")
    with pytest.raises(HubError, match=r"repository-id holds no id"):
        credentials.find(common)


@settings(deadline=None)
@given(AGENTS, KEYS)
def test_shell_lines_are_read_back(agent: str, key: str) -> None:
    text = credentials.shell_lines(agent, SecretStr(key))
    found = credentials.parse_shell_lines(text)
    assert found is not None and (found[0], found[1].get_secret_value()) == (agent, key)


@pytest.mark.parametrize("key", ["plain", '$(touch x)`touch y`"; touch z; "$HOME\\', "a!b'c"])
def test_a_shell_takes_the_lines_as_they_are(key: str, tmp_path: Path) -> None:
    """A hub that hands out a command for a key gets nothing run."""
    path = tmp_path / "creds"
    path.write_text(credentials.shell_lines("ada", SecretStr(key)))
    script = '. ./creds; printf "%s %s" "$HUB_KEY" "$AGENT_ID"'
    run = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == f"{key} ada"
    assert os.listdir(tmp_path) == ["creds"]


def test_lines_that_others_wrote_are_read_and_not_run() -> None:
    found = credentials.parse_shell_lines("# mine\nexport HUB_KEY='k 1'\nAGENT_ID=ada\n")
    assert found is None  # a key has no blanks
    found = credentials.parse_shell_lines("HUB_KEY=k1\n  export AGENT_ID='ada'  \nrm -rf /\n")
    assert found is not None and found[0] == "ada"
    assert credentials.parse_shell_lines("export HUB_KEY=$(cat k)\nexport AGENT_ID=ada") is None


def test_joining_writes_both_files_for_their_owner_only_and_none_in_the_repository(
    stand_in: StandIn, home: Path, common: Path
) -> None:
    before = os.umask(0)
    try:
        joined = join(stand_in.url + "/", "ada", None, common, replace=False)
    finally:
        os.umask(before)
    assert joined.registered
    own, shell, key = credentials.own_file(common), home / ".agenthub_creds", stand_in.keys["ada"]
    assert _mode(own) == _mode(shell) == 0o600
    assert json.loads(own.read_text()) == {
        "server_url": stand_in.url, "api_key": key, "agent_id": "ada",
    }  # fmt: skip
    assert own.parent == home / ".config" / "autohypothesis" / "hubs"
    assert {_mode(own.parent), _mode(own.parent.parent), _mode(home / ".config")} == {0o700}
    assert not any(key in path.read_text() for path in common.rglob("*") if path.is_file())
    assert shell.read_text() == f'export HUB_KEY="{key}"\nexport AGENT_ID="ada"\n'
    again = join(stand_in.url, None, None, common, replace=False)
    assert not again.registered and again.notes == []
    assert list(stand_in.keys) == ["ada"]


def test_another_agents_key_is_not_thrown_away(
    stand_in: StandIn, home: Path, common: Path, tmp_path: Path
) -> None:
    join(stand_in.url, "ada", None, common, replace=False)
    before = (home / ".agenthub_creds").read_text()
    for server, name in ((stand_in.url, "grace"), ("http://elsewhere", "ada")):
        with pytest.raises(HubError, match=r"has joined .* as ada already"):
            join(server, name, None, common, replace=False)
    assert list(stand_in.keys) == ["ada"]  # nothing was registered to be lost
    other = tmp_path / "other" / ".git"
    other.mkdir(parents=True)
    joined = join(stand_in.url, "grace", None, other, replace=False)
    assert any("agent ada's and stays" in note for note in joined.notes)
    assert (home / ".agenthub_creds").read_text() == before
    join(stand_in.url, "alan", None, other, replace=True)
    own = credentials.own_file(other)
    assert credentials.find(other).agent == "alan"
    kept = json.loads(own.with_name(f"{own.name}.before").read_text())
    assert kept["agent_id"] == "grace"
    assert (home / ".agenthub_creds.before").read_text() == before
    join(stand_in.url, "emmy", None, other, replace=True)
    assert {found.agent for path in own.parent.iterdir() if (found := credentials.read(path))} == {
        "ada", "grace", "alan", "emmy",
    }  # fmt: skip
    assert len(list(home.glob(".agenthub_creds*"))) == 3


def test_a_closed_hub_says_how_to_get_in_and_a_given_key_is_tried(
    stand_in: StandIn, home: Path, common: Path
) -> None:
    closed = b'{"error": "registration is closed: ask the lab for a key"}'
    stand_in.behave = lambda h: h.path == "/api/register" and h.say(403, closed) is None
    with pytest.raises(HubError, match=r"ask the lab for a key.*--key-file"):
        join(stand_in.url, "ada", None, common, replace=False)
    with pytest.raises(HubError, match="401"):
        join(stand_in.url, "ada", SecretStr("wrong"), common, replace=False)
    assert credentials.read(credentials.own_file(common)) is None
    given = SecretStr(stand_in.hub.agent("ada").key)
    assert not join(stand_in.url, "ada", given, common, replace=False).registered
    assert credentials.find(common).key == given


def test_a_name_that_is_taken_or_none_is_refused(
    stand_in: StandIn, home: Path, common: Path
) -> None:
    stand_in.hub.agent("ada")
    with pytest.raises(HubError, match="409: agent ada is taken"):
        join(stand_in.url, "ada", None, common, replace=False)
    with pytest.raises(UsageError, match="no name of an agent"):
        join(stand_in.url, "../ada", None, common, replace=False)
    assert credentials.checked_agent(default_name())


def test_a_folder_that_cannot_be_written_costs_no_name(
    stand_in: StandIn, home: Path, common: Path
) -> None:
    (common / "autohypothesis").write_text("a file in its place")
    with pytest.raises(HubError, match="cannot be"):
        join(stand_in.url, "ada", None, common, replace=False)
    assert stand_in.keys == {}


def test_a_folder_that_others_could_read_is_closed(
    stand_in: StandIn, home: Path, common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(home / "settings"))
    (home / "settings" / "hubs").mkdir(parents=True, mode=0o755)
    join(stand_in.url, "ada", None, common, replace=False)
    assert credentials.own_file(common).parent == home / "settings" / "hubs"
    assert _mode(home / "settings" / "hubs") == 0o700


def test_a_moved_repository_stays_who_it_is_and_another_one_is_nobody(
    stand_in: StandIn, home: Path, common: Path
) -> None:
    join(stand_in.url, "ada", None, common, replace=False)
    moved = common.parent.rename(common.parent.with_name("moved"))
    assert credentials.find(moved / ".git").agent == "ada"
    common.mkdir(parents=True)
    assert credentials.own(common) is None


@pytest.mark.parametrize("already", ["", "same", "other", "foreign"])
def test_keys_of_an_earlier_version_leave_the_repository(
    already: str, home: Path, common: Path
) -> None:
    """Also after a kill in between, and beside a newer one or something of the user's."""
    old = _config(common / "autohypothesis" / "hub.json", "earlier")
    older = _config(common / "autohypothesis" / "hub.json.before", "earliest")
    own = credentials.own_file(common)
    if already == "foreign":
        own.parent.mkdir(parents=True)
        own.write_text("the user's own notes")
        with pytest.raises(HubError, match=re.escape(str(own))):
            credentials.find(common)
        assert own.read_text() == "the user's own notes"
    elif already:
        _config(own, {"same": "earlier", "other": "newer"}[already])
    if already != "foreign":
        agent = "newer" if already == "other" else "earlier"
        assert credentials.find(common).agent == credentials.find(common).agent == agent
    assert not old.exists() and not older.exists()
    kept = [
        read for path in own.parent.iterdir() if path != own and (read := credentials.read(path))
    ]
    others = {"earliest"} | ({"earlier"} if already in ("other", "foreign") else set())
    assert {found.agent for found in kept} == others
    assert all(_mode(Path(found.source)) == 0o600 for found in kept)


def test_many_processes_move_a_key_out_at_once_and_all_find_it(home: Path, common: Path) -> None:
    old = _config(common / "autohypothesis" / "hub.json", "ada")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: credentials.find(common).agent, range(64)))
    assert set(found) == {"ada"} and not old.exists()
    assert os.listdir(credentials.own_file(common).parent) == [credentials.own_file(common).name]


def test_a_key_that_cannot_be_moved_out_is_named_and_stays(home: Path, common: Path) -> None:
    old = _config(common / "autohypothesis" / "hub.json", "ada")
    (home / ".config").write_text("a file in the folder's place")
    with pytest.raises(HubError, match=r"cannot be moved .* export AUTOHYPOTHESIS_CONFIG"):
        credentials.find(common)
    assert credentials.read(old) is not None
