"""A secret of this user is found in whatever would leave this machine, and never shown."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from autohypothesis import sandbox
from autohypothesis.errors import SecretError
from autohypothesis.records import secrets
from autohypothesis.records.secrets import find_secret, refuse_secrets, texts_in
from autohypothesis.records.signing import own_signer, private_key_file

TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt-1_2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any secret."""
    for name in [name for name in os.environ if secrets._SECRET_NAME.search(name)]:
        monkeypatch.delenv(name)
    for name in ("AGENTHUB_CONFIG", "AUTOHYPOTHESIS_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


RAW = TOKEN.encode()
HIDDEN = {
    "as it is": RAW,
    "in a sentence": b"look: " + RAW + b"!",
    "over lines": RAW[:9] + b"\r\n   " + RAW[9:],
    "in hex": RAW.hex().encode(),
    "in upper hex": RAW.hex().upper().encode(),
    "in lines of base64": base64.encodebytes(b"some text before " * 9 + RAW + b" and after"),
    **{f"in base64, {n} on": base64.b64encode(b"x" * n + RAW) for n in range(3)},
    **{f"in safe base64, {n} on": base64.urlsafe_b64encode(b"\xff" * n + RAW) for n in range(3)},
}


@pytest.mark.parametrize("how", HIDDEN)
def test_a_token_of_the_environment_is_found(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_secret(HIDDEN[how]) is None
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find_secret(HIDDEN[how]) == "the value of $HF_TOKEN"
    assert find_secret(HIDDEN[how].decode("latin-1")) == "the value of $HF_TOKEN"


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "MYAPIKEY", "APIKEY", "GITHUB_PAT", "PGPASSWORD", "mysql_pwd", "SECRET",
     "AWS_SECRET_ACCESS_KEY", "AUTOHYPOTHESIS_HUB_ADMIN_KEY", "HUB_KEY", "GPG_PASSPHRASE"],
)  # fmt: skip
def test_which_variables_are_secret_is_seen_from_their_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "S3cr3t-value")
    assert find_secret("it is S3cr3t-value") == f"the value of ${name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("KEYBOARD", "S3cr3t-value"), ("PWD", "/home/ada/project"), ("MAX_TOKENS", "100000000"),
     ("HOST_KEY", "/etc/ssh/key.pub"), ("API_KEY", "required"), ("TOKEN", "short1"),
     ("PATH_TO", "S3cr3t-value"), ("KEY", "")],
)  # fmt: skip
def test_settings_paths_and_short_words_are_no_secrets(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert find_secret(f"anything with {value} in it") is None


def test_hub_keys_are_found_wherever_the_user_keeps_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has to be escaped in JSON and in a shell."""
    keys = {name: f'key"of\\{name}$x' for name in ("own", "before", "users", "named")}
    folder = secrets.hub_keys_folder()
    places = {
        "own": folder / "0a.json", "before": folder / "0a.json.before",
        "users": home / ".agenthub" / "config.json", "named": home / "elsewhere.json",
    }  # fmt: skip
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"server_url": "http://h", "api_key": keys[name]}))
    monkeypatch.setenv("AGENTHUB_CONFIG", str(places["named"]))
    (home / ".agenthub_creds").write_text('export HUB_KEY="shell\\$key-1"\n')
    (home / ".agenthub_creds.before").write_text("HUB_KEY='older-key-1'\n")
    for name, path in places.items():
        assert find_secret(f"take {keys[name]}") == f"the hub key in {path}"
    assert find_secret("shell$key-1") == f"the hub key in {home / '.agenthub_creds'}"
    assert find_secret("older-key-1") == f"the hub key in {home / '.agenthub_creds.before'}"
    kept = {folder.parent, home / ".agenthub", places["named"], home / ".agenthub_creds",
            home / ".agenthub_creds.before"}  # fmt: skip
    assert kept <= set(sandbox.secret_places())  # no run sees one of them


def test_the_key_that_signs_records_is_found(home: Path) -> None:
    signer = own_signer()
    assert signer is not None
    text = private_key_file().read_text()
    assert find_secret(f"look: {text}") == "the key that signs this fleet's records"
    assert find_secret(signer.key_id) is None


def test_what_looks_like_a_hub_key_is_one_whosesoever_it_is() -> None:
    from autohypothesis.hub.server.agents import new_key

    assert find_secret(f"{{{new_key()}}}") == "a key of a hub (ahk_…)"
    assert find_secret("ahk_ is how keys begin") is None


def test_a_damaged_or_endless_file_of_keys_hinders_nothing(home: Path) -> None:
    folder = secrets.hub_keys_folder()
    folder.mkdir(parents=True)
    (folder / "torn.json").write_text('{"api_key": "abc')
    (folder / "list.json").write_text("[1]")
    (folder / "large.json").write_bytes(b"x" * (secrets.FILE_LIMIT + 1))
    (folder / "loop").symlink_to("loop")
    (folder / "zero").symlink_to("/dev/zero")
    assert find_secret("anything") is None


def test_where_it_is_is_said_and_what_it_is_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    value = {"title": "fine", "list": [{"deep": f"<{TOKEN}>"}], "number": 1}
    with pytest.raises(SecretError, match=r"^a post is stopped: list\[0\]\.deep holds") as caught:
        refuse_secrets("a post", texts_in(value))
    assert TOKEN not in str(caught.value) + repr(caught.value.__dict__)
    with pytest.raises(SecretError, match="a key of the object holds the value of"):
        refuse_secrets("a post", texts_in({TOKEN: 1}))
    refuse_secrets("a post", texts_in({"title": "fine", "more": [None, True, 1.5]}))
