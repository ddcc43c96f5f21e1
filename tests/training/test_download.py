"""Downloads from a server that misbehaves. A local one: nothing here leaves the machine."""

from __future__ import annotations

import hashlib
import io
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


class Hub:
    """A dataset hub with `files`; each fault is a countdown of the requests it spoils."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults = {"drop": 0, "busy": 0, "corrupt": 0, "no_ranges": 0, "torn_list": 0}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.page = 2  # entries of one page of the list
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def strike(self, fault: str) -> bool:
        self.faults[fault] -= 1
        return self.faults[fault] >= 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        headers = request.headers
        self.requests.append((path, headers.get("Range"), headers.get("Authorization")))
        if path.startswith("/api/datasets/me/data/tree/main"):
            start = int(query.partition("page=")[2] or 0)
            names = sorted(self.files)
            page = [
                {"type": "file", "path": n, "size": len(self.files[n])}
                | {"lfs": {"oid": hashlib.sha256(self.files[n]).hexdigest()}}
                for n in names[start : start + self.page]
            ]
            body = json.dumps([{"type": "directory", "path": "d", "size": 0}, *page]).encode()
            request.send_response(200)
            if start + self.page < len(names):
                after = f"{self.url}{path}?recursive=true&page={start + self.page}"
                request.send_header("Link", f'<{after}>; rel="next"')
            self.send(request, body, cut=self.strike("torn_list"))
            return
        name = path.removeprefix("/datasets/me/data/resolve/main/")
        if name not in self.files:
            request.send_error(404)
        elif self.strike("busy"):
            request.send_error(503)
        else:
            body, offset = self.files[name], 0
            if headers.get("Range") and not self.strike("no_ranges"):
                offset = int(headers["Range"].removeprefix("bytes=").rstrip("-"))
            if self.strike("corrupt"):
                body = body[:-1] + bytes([body[-1] ^ 1])
            request.send_response(206 if offset else 200)
            self.send(request, body[offset:], cut=self.strike("drop"))

    def send(self, request: BaseHTTPRequestHandler, body: bytes, *, cut: bool) -> None:
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            request.connection.shutdown(2)


@pytest.fixture
def hub(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    words = random.Random(0).choices(["alpha", "beta", "gamma", "delta", "\n"], k=20_000)
    for i in range(4):
        texts = [" ".join(words[j * 50 : j * 50 + 400 + i]) for j in range(300)]
        out = io.BytesIO()
        pq.write_table(pa.table({"text": texts}), out, row_group_size=64)
        found.files[f"shard_{i:05d}.parquet"] = out.getvalue()
    found.files["README.md"] = b"not a shard"
    yield found
    found.server.shutdown()
    found.server.server_close()


def make(prepare: ModuleType, cache: Path, **changes: Any) -> Any:
    base = prepare.PROFILES["test"]
    profile = prepare.derive_profile(base, source="hf:me/data", **({"num_shards": 2} | changes))
    return prepare.prepare(profile, cache, 3)


def intact(prepared: Any, hub: Hub) -> bool:
    return all(f.read_bytes() == hub.files[f.name] for f in prepared.train_files)


@pytest.mark.parametrize(
    "faults",
    [{"drop": 2}, {"busy": 2}, {"corrupt": 2}, {"torn_list": 2}, {"drop": 1, "no_ranges": 1}],
    ids=str,
)
def test_a_fault_costs_a_retry_and_no_byte(
    prepare: ModuleType, hub: Hub, tmp_path: Path, faults: dict[str, int]
) -> None:
    hub.faults |= faults
    prepared = make(prepare, tmp_path)
    assert len(prepared.train_files) == 2 and intact(prepared, hub)
    assert not list(tmp_path.rglob("*.part"))


def test_a_broken_transfer_goes_on_where_it_broke(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    hub.faults["drop"] = 1
    assert intact(make(prepare, tmp_path), hub)
    ranges = [asked for _, asked, _ in hub.requests if asked]
    assert len(ranges) == 1 and ranges[0] != "bytes=0-"


def test_a_killed_download_is_resumed_by_the_next(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    name = "shard_00000.parquet"
    part = tmp_path / "shards" / "me--data" / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.files[name][:1000])
    assert intact(make(prepare, tmp_path), hub)
    assert ("bytes=1000-") in [asked for path, asked, _ in hub.requests if path.endswith(name)]


def test_a_server_that_stays_broken_is_named_and_the_parts_are_kept(
    prepare: ModuleType, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "ATTEMPTS", 2)
    hub.faults["corrupt"] = 1000
    with pytest.raises(prepare.PrepareError, match=r"shard_0000\d\.parquet: .*SHA-256"):
        make(prepare, tmp_path)
    hub.faults["corrupt"] = 0
    assert intact(make(prepare, tmp_path), hub)


def test_a_missing_dataset_is_named_at_once(prepare: ModuleType, hub: Hub, tmp_path: Path) -> None:
    profile = prepare.derive_profile(prepare.PROFILES["test"], source="hf:me/other")
    with pytest.raises(prepare.PrepareError, match=r"404 .*me/other"):
        prepare.prepare(profile, tmp_path, 1)
    assert len(hub.requests) == 1


def test_a_path_that_leads_elsewhere_is_refused(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    hub.files["../../evil.parquet"] = b"evil"
    with pytest.raises(prepare.PrepareError, match=r"evil\.parquet leads elsewhere"):
        make(prepare, tmp_path / "cache")
    assert not list(tmp_path.rglob("evil*"))


def test_shards_are_downloaded_once_for_all_preparations_of_a_source(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    first = make(prepare, tmp_path)
    fetched = [path for path, _, _ in hub.requests if "/resolve/" in path]
    assert len(fetched) == 3  # two to train on, and the pinned last one
    second = make(prepare, tmp_path, seq_len=16)
    assert second.path != first.path
    assert [path for path, _, _ in hub.requests if "/resolve/" in path] == fetched
    assert first.train_files[0].stat().st_ino == second.train_files[0].stat().st_ino
    hub.requests.clear()
    make(prepare, tmp_path)
    assert hub.requests == [], "a complete preparation asks no server"


def test_a_damaged_shared_shard_is_refused_by_name(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    make(prepare, tmp_path)
    shard = tmp_path / "shards" / "me--data" / "shard_00001.parquet"
    data = shard.read_bytes()
    shard.unlink()  # it is a hard link
    shard.write_bytes(data[:-1] + b"?")
    with pytest.raises(prepare.DamagedError, match=r"shard_00001\.parquet"):
        make(prepare, tmp_path, seq_len=16)


def test_the_last_shard_validates_and_minus_one_takes_all_others(
    prepare: ModuleType, hub: Hub, tmp_path: Path
) -> None:
    prepared = make(prepare, tmp_path, num_shards=-1)
    assert [f.name for f in prepared.train_files] == [f"shard_0000{i}.parquet" for i in range(3)]
    theirs = pq.read_table(io.BytesIO(hub.files["shard_00003.parquet"])).column(0).to_pylist()
    ours = list(prepare._read_parquet(prepared.val_file))
    assert ours == theirs[: len(ours)]
    total = sum(len(text.encode()) for text in ours)
    assert 0.9 * prepared.profile.eval_bytes < total <= prepared.profile.eval_bytes


def test_a_dataset_of_one_file_is_split(prepare: ModuleType, hub: Hub, tmp_path: Path) -> None:
    text = pq.read_table(io.BytesIO(hub.files["shard_00000.parquet"]))
    del hub.files["shard_00001.parquet"], hub.files["shard_00002.parquet"]
    del hub.files["shard_00003.parquet"]
    prepared = make(prepare, tmp_path)
    val = set(prepare._read_parquet(prepared.val_file))
    assert 0 < len(val) < text.num_rows / 4


def test_a_token_is_sent_when_there_is_one(
    prepare: ModuleType, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    make(prepare, tmp_path)
    assert {token for _, _, token in hub.requests} == {"Bearer secret"}
