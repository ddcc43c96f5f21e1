"""Pushes that are hostile, that die half-way, and what is left of them: nothing."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.hub.server.app import open_hub
from autohypothesis.hub.server.inspection import parse_header
from autohypothesis.hub.server.refusals import BundleError
from autohypothesis.hub.server.settings import HubLimits, Settings

from .conftest import Agent, Clone, Hub, HubProcess, MakeClone, Start, StartProcess
from .gated_hub import STEPS


def state(hub: Hub) -> tuple[object, ...]:
    """All that a push could leave: files, refs, rows. What goes meanwhile is not there."""
    files = sorted(
        os.path.relpath(os.path.join(place, name), hub.data)
        for folder in ("commits.git", "incoming", "passing")
        for place, folders, names in os.walk(hub.data / folder)
        for name in (*folders, *names)
    )
    with sqlite3.connect(hub.data / "hub.sqlite3") as database:
        rows = [
            database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("commits", "parents", "pushes")
        ]
    return (files, rows)


# ── what is stored ──────────────────────────────────────────────────────────────────────────


@dataclass
class Pusher:
    hub: Hub
    agent: Agent
    mine: Clone

    def push(self) -> int:
        return self.agent.push(self.mine.bundle()).status

    def restart(self) -> None:
        self.agent.hub = self.hub.start().url

    def packed(self) -> int:
        """Objects in all packs of the hub; one that is in two of them counts twice."""
        counts = dict(line.split(": ") for line in self.hub.git("count-objects", "-v").splitlines())
        return int(counts["in-pack"])


@pytest.fixture
def pusher(start: Start, clone: MakeClone) -> Pusher:
    hub = start()
    return Pusher(hub, hub.agent("ada"), clone())


def test_full_history_again_and_again_is_stored_once(pusher: Pusher) -> None:
    for number in range(4):
        pusher.mine.commit(f"number {number}")
        assert pusher.push() == 201
    assert pusher.packed() == 12
    assert "missing" not in pusher.hub.git("fsck", "--strict")


def test_what_no_new_commit_needs_is_not_stored(pusher: Pusher) -> None:
    mine = pusher.mine
    head = mine.commit("start")
    junk = mine.object("blob", b"nobody asked for this")
    objects = mine.git("rev-list", "--objects", "--no-object-names", "HEAD").split()
    assert pusher.agent.push(mine.bundle_with(head, [*objects, junk])).status == 201
    assert pusher.packed() == len(objects)


def test_gc_keeps_every_commit_and_a_start_makes_a_lost_ref_again(pusher: Pusher) -> None:
    hub, agent = pusher.hub, pusher.agent
    for number in range(3):
        head = pusher.mine.commit(f"number {number}")
        assert pusher.push() == 201
    before = agent.get("/api/git/commits")
    hub.end()
    hub.git("gc", "-q", "--prune=now", "--aggressive")
    pusher.restart()
    assert agent.get("/api/git/commits") == before
    assert agent(f"/api/git/fetch/{head}").status == 200
    hub.end()
    hub.git("update-ref", "-d", f"refs/commits/{head}")
    pusher.restart()
    assert head in hub.git("for-each-ref", "--format=%(objectname)").split()
    pusher.mine.commit("after")
    assert pusher.push() == 201


def test_many_packs_get_one_index_that_a_kill_and_gc_do_not_hurt(
    tmp_path: Path, clone: MakeClone
) -> None:
    settings = Settings(tmp_path / "hub", limits=HubLimits(loose_packs=2))
    mine, opened = clone(), open_hub(settings)
    lock = opened.store.packs / "multi-pack-index.lock"

    def push(message: str) -> str:
        head = mine.commit(message)
        quarantine = opened.intake.quarantine()
        quarantine.body.write_bytes(mine.bundle().read_bytes())
        assert opened.intake.take(quarantine, "ada") == [head]
        return head

    push("one")
    assert not lock.with_suffix("").exists()
    heads = [push("two"), push("three")]
    assert lock.with_suffix("").exists()
    lock.touch()
    opened = open_hub(settings)
    heads.append(push("four"))
    assert not lock.exists()
    subprocess.run(["git", "gc", "-q", "--prune=now"], cwd=opened.store.path, check=True)
    heads.append(push("five"))
    assert opened.store.present(heads) == set(heads)
    opened.store.bundle(heads[-1]).close()


# ── killed half-way ─────────────────────────────────────────────────────────────────────────


def test_a_push_that_is_killed_is_whole_or_not_there(
    start_process: StartProcess, clone: MakeClone
) -> None:
    """At every step of one push; each start sweeps, and is killed at the next step."""
    hub, mine = start_process(), clone()
    agent = hub.agent("ada")
    first = mine.commit("one")
    assert agent.push(mine.bundle()).status == 201
    hub.end()
    before = state(hub)
    second, third = mine.commit("two"), mine.commit("three")
    bundle = mine.bundle()
    gated = HubProcess(hub.data, words=("-m", "tests.hub.gated_hub"))
    for place, step in enumerate(STEPS):
        agent.hub = (gated.listens() if place else gated.start()).url
        assert [one["hash"] for one in agent.get("/api/git/commits")] == [first], step
        assert state(hub) == before, step
        with pytest.raises(AssertionError, match="no answer"):
            agent.push(bundle)
        assert gated.process is not None and gated.process.stderr is not None
        while not (line := gated.process.stderr.readline()).startswith("ended with"):
            assert line, step
        assert line == f"ended with -9 after {step}\n"
    assert gated.died() == 0
    agent.hub = hub.start().url
    assert [one["hash"] for one in agent.get("/api/git/commits")] == [third, second, first]
    assert not any((hub.data / "incoming").iterdir())
    assert agent.push(bundle).json == {"hashes": [third]}
    lineage = agent.get(f"/api/git/commits/{third}/lineage")
    assert [one["hash"] for one in lineage] == [third, second, first]
    assert hub.git("fsck", "--strict", "--no-dangling").strip() in ("", UNBORN)


UNBORN = "notice: HEAD points to an unborn branch (master)"


def test_a_lock_of_a_git_that_was_killed_is_removed(pusher: Pusher) -> None:
    hub, head = pusher.hub, pusher.mine.commit("start")
    hub.end()
    (hub.data / "commits.git" / "packed-refs.lock").touch()
    refs = hub.data / "commits.git" / "refs" / "commits"
    refs.mkdir(exist_ok=True)
    (refs / f"{head}.lock").touch()
    pusher.restart()
    assert pusher.push() == 201


def test_a_publication_that_fails_is_undone(pusher: Pusher) -> None:
    """A ref that cannot be made: a file of somebody's is in its way."""
    hub, head = pusher.hub, pusher.mine.commit("start")
    in_the_way = hub.data / "commits.git" / "refs" / "commits" / head / "x"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text(head)
    assert pusher.push() == 500
    assert pusher.agent.get("/api/git/commits") == []
    in_the_way.unlink()
    in_the_way.parent.rmdir()
    assert pusher.push() == 201
    assert pusher.packed() == 3 and not any((hub.data / "incoming").iterdir())


# ── hostile ─────────────────────────────────────────────────────────────────────────────────


def entry(kind: int, content: bytes, size: int | None = None, base: str = "") -> bytes:
    """An object as a pack holds it; `content` is compressed here."""
    left = len(content) if size is None else size
    byte = (kind << 4) | (left & 15)
    left >>= 4
    head = bytearray()
    while left:
        head.append(byte | 128)
        byte, left = left & 127, left >> 7
    head.append(byte)
    return bytes(head) + bytes.fromhex(base) + zlib.compress(content, 9)


def made(head: str, *entries: bytes) -> bytes:
    """A bundle whose pack holds `entries`."""
    pack = b"PACK" + struct.pack(">II", 2, len(entries)) + b"".join(entries)
    return f"# v2 git bundle\n{head} HEAD\n\n".encode() + pack + hashlib.sha1(pack).digest()


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def delta_bomb(_: Clone) -> bytes:
    """Each object copies the one before it many times over: 60 kB become 2 GB."""
    size, entries = 60_000, [entry(3, b"x" * 60_000)]
    for times in (200, 180):
        name = hashlib.sha1(b"blob %d\0" % size + b"x" * size).hexdigest()
        copies = (b"\xf0" + size.to_bytes(3, "little")) * times
        entries.append(entry(7, varint(size) + varint(size * times) + copies, base=name))
        size *= times
    return made("a" * 40, *entries)


def zero_bomb(_: Clone) -> bytes:
    """A gigabyte of nothing in a megabyte."""
    compress, size = zlib.compressobj(9, wbits=-15), 1 << 30
    piece = compress.compress(bytes(1 << 20)) + compress.flush(zlib.Z_FULL_FLUSH)
    checksum = (size % 65521 << 16 | 1).to_bytes(4, "big")
    head = entry(3, b"", size=size).removesuffix(zlib.compress(b"", 9))
    return made("a" * 40, head + b"\x78\xda" + piece * 1024 + compress.flush() + checksum)


def nested(levels: int, width: int = 1, name: str = "d") -> Callable[[Clone], bytes]:
    """Trees of trees of a file; there is no end to what wide ones unfold to."""

    def make(mine: Clone) -> bytes:
        inner = mine.tree(("100644", "f", mine.object("blob", b"f")))
        for _ in range(levels):
            inner = mine.tree(*(("40000", f"{name}{number}", inner) for number in range(width)))
        return mine.bundle_of(mine.commit_of(inner)).read_bytes()

    return make


def of_tree(*entries: tuple[str, str]) -> Callable[[Clone], bytes]:
    """A commit of a tree with these (mode, name)."""

    def make(mine: Clone) -> bytes:
        blob = mine.object("blob", b"content")
        tree = mine.tree(*((mode, name, blob) for mode, name in entries))
        head = mine.commit_of(tree)
        return mine.bundle_with(head, [head, tree, blob]).read_bytes()

    return make


def submodule(mine: Clone) -> bytes:
    tree = mine.tree(("160000", "sub", "b" * 40))
    head = mine.commit_of(tree)
    return mine.bundle_with(head, [head, tree]).read_bytes()


def a_tag(mine: Clone) -> bytes:
    mine.commit("start")
    mine.git("tag", "-a", "-m", "a tag", "v1")
    return mine.bundle("v1").read_bytes()


def many_parents(mine: Clone) -> bytes:
    tree = mine.tree(("100644", "f", mine.object("blob", b"f")))
    parents = [mine.commit_of(tree, message=str(number)) for number in range(20)]
    return mine.bundle_of(mine.commit_of(tree, *parents)).read_bytes()


def head_not_in_pack(mine: Clone) -> bytes:
    head = mine.commit("start")
    return mine.bundle().read_bytes().replace(head.encode(), b"c" * 40)


def without_a_blob(mine: Clone) -> bytes:
    head = mine.commit("start")
    return mine.bundle_with(head, [head, mine.git("rev-parse", "HEAD^{tree}")]).read_bytes()


def torn(mine: Clone) -> bytes:
    mine.commit("start")
    return mine.bundle().read_bytes()[:-30]


def shallow(mine: Clone) -> bytes:
    """Older gits make such bundles, and any program can: the commit, without its parent."""
    mine.commit("root")
    head = mine.commit("head")
    objects = mine.git("rev-list", "--objects", "--no-object-names", "--max-count=1", "HEAD")
    return mine.bundle_with(head, objects.split()).read_bytes()


def blob_for_a_head(mine: Clone) -> bytes:
    head = mine.commit("start")
    blob = mine.git("rev-parse", "HEAD:train.py")
    return mine.bundle().read_bytes().replace(head.encode(), blob.encode())


def huge_count(_: Clone) -> bytes:
    return b"# v2 git bundle\n" + b"a" * 40 + b" HEAD\n\nPACK\0\0\0\2\xff\xff\xff\xff" + b"x" * 99


HOSTILE: dict[str, Callable[[Clone], bytes]] = {
    "delta bomb": delta_bomb,
    "zero bomb": zero_bomb,
    "tree bomb": nested(10, 10),
    "deep tree": nested(100),
    "long path": nested(8, name="d" * 200),
    "symbolic link": of_tree(("120000", "link")),
    "submodule": submodule,
    ".gitattributes": of_tree(("100644", ".gitattributes")),
    ".gitmodules": of_tree(("100644", ".gitmodules")),
    ".GITATTRIBUTES": of_tree(("100644", ".GitAttributes")),
    "dot git": of_tree(("100644", ".git")),
    "dot dot": of_tree(("100644", "..")),
    "slash": of_tree(("100644", "a/b")),
    "twice": of_tree(("100644", "a"), ("100755", "a")),
    "unsorted": of_tree(("100644", "b"), ("100644", "a")),
    "odd mode": of_tree(("100664", "a")),
    "zero mode": of_tree(("0100644", "a")),
    "file as folder": of_tree(("40000", "a")),
    "tag": a_tag,
    "parents": many_parents,
    "head": head_not_in_pack,
    "blob": without_a_blob,
    "torn": torn,
    "shallow": shallow,
    "blob for a head": blob_for_a_head,
    "count": huge_count,
}


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> object:
    hub = HubProcess(tmp_path_factory.mktemp("victim") / "data", ("--pushes", "1000")).start()
    yield hub, hub.agent("mallory")
    hub.end()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_in_time_and_leaves_nothing(
    victim: tuple[HubProcess, Agent], clone: MakeClone, tmp_path: Path, name: str
) -> None:
    """Two seconds and 50 MB are the promise; the clock here is CPU time of git and server."""
    hub, mallory = victim
    bundle = tmp_path / "hostile.bundle"
    bundle.write_bytes(HOSTILE[name](clone()))
    before, server = state(hub), psutil.Process(hub.pid)
    memory, spent = server.memory_info().rss, _spent(server)
    answer = mallory.push(bundle)
    assert answer.status == 400 and "bundle" in answer.error, answer.body
    assert state(hub) == before
    assert server.memory_info().rss - memory < 50 << 20
    assert _spent(server) - spent < 2.0


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def test_git_takes_no_more_memory_than_it_is_given(
    victim: tuple[HubProcess, Agent], clone: MakeClone, tmp_path: Path
) -> None:
    hub, mallory = victim
    bundle = tmp_path / "bomb"
    bundle.write_bytes(delta_bomb(clone()))
    sender = subprocess.Popen(
        ["curl", "-s", "-H", f"Authorization: Bearer {mallory.key}", "--data-binary",
         f"@{bundle}", f"{hub.url}/api/git/push"], stdout=subprocess.PIPE,
    )  # fmt: skip
    most = 0
    while sender.poll() is None:
        for child in psutil.Process(hub.pid).children():
            try:
                most = max(most, child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.005)
    assert sender.stdout is not None
    with sender.stdout as said:
        assert "error" in json.loads(said.read())
    assert 0 < most < 300 << 20


def test_a_body_over_the_limit_is_refused_with_an_answer(
    start: Start, clone: MakeClone, tmp_path: Path
) -> None:
    hub = start("--bundle-mb", "1")
    agent, large = hub.agent("ada"), tmp_path / "large"
    large.write_bytes(bytes(3 << 20))
    before = state(hub)
    told = agent("/api/git/push", "-X", "POST", "--data-binary", f"@{large}")
    chunked = ("-X", "POST", "-H", "Transfer-Encoding: chunked", "-H", "Expect:")
    untold = agent("/api/git/push", *chunked, "--data-binary", f"@{large}")
    for answer in (told, untold):
        assert answer.status == 413 and answer.error
    no_key = Agent(hub.url, "x", "wrong")("/api/git/push", *chunked, "--data-binary", f"@{large}")
    assert no_key.status == 401 and no_key.error
    assert state(hub) == before


def test_a_sender_that_goes_away_leaves_nothing(start: Start, clone: MakeClone) -> None:
    hub = start()
    agent = hub.agent("ada")
    before = state(hub)
    words = ["curl", "-s", "-X", "POST", "-T", "-", "-H", f"Authorization: Bearer {agent.key}"]
    sender = subprocess.Popen([*words, f"{hub.url}/api/git/push"], stdin=subprocess.PIPE)
    assert sender.stdin is not None
    sender.stdin.write(b"# v2 git bundle\n" * 10_000)
    sender.stdin.flush()
    until = time.monotonic() + 120
    while state(hub) == before and time.monotonic() < until:
        time.sleep(0.02)
    sender.kill()
    sender.wait()
    sender.stdin.close()
    while state(hub) != before and time.monotonic() < until:
        time.sleep(0.02)
    assert state(hub) == before


# ── the header, which is read by us ─────────────────────────────────────────────────────────

LIMITS = HubLimits()
SMALL = HubLimits(heads=3, prerequisites=2, objects=10)
names = st.text("0123456789abcdef", min_size=40, max_size=40)
refs = st.binary(min_size=1, max_size=40).filter(lambda ref: b"\n" not in ref)


def pack(objects: int) -> bytes:
    return b"PACK\0\0\0\2" + objects.to_bytes(4, "big")


def header(heads: list[tuple[str, bytes]], needed: list[str], objects: int = 3) -> bytes:
    lines = [b"# v2 git bundle"]
    lines += [b"-" + one.encode() + b" a comment" for one in needed]
    lines += [name.encode() + b" " + ref for name, ref in heads]
    return b"\n".join(lines) + b"\n\n" + pack(objects)


@given(st.binary(max_size=600))
def test_no_bytes_are_more_than_refused(content: bytes) -> None:
    for start in (content, b"# v2 git bundle\n" + content, b"# v3 git bundle\n" + content):
        try:
            found = parse_header(start, SMALL)
        except BundleError as error:
            assert error.status == 400
        else:
            assert start[found.pack_at : found.pack_at + 4] == b"PACK"
            assert 0 < len(found.heads) <= SMALL.heads and found.objects <= SMALL.objects


@given(
    st.lists(st.tuples(names, refs), min_size=1, max_size=20), st.lists(names, max_size=20),
    st.integers(0, LIMITS.objects), st.binary(max_size=30),
)  # fmt: skip
def test_what_was_written_is_read(
    heads: list[tuple[str, bytes]], needed: list[str], objects: int, rest: bytes
) -> None:
    content = header(heads, needed, objects)
    found = parse_header(content + rest, LIMITS)
    assert found.heads == tuple(dict.fromkeys(name for name, _ in heads))
    assert found.prerequisites == tuple(dict.fromkeys(needed))
    assert (found.objects, found.pack_at) == (objects, len(content) - 12)


@given(st.data())
def test_a_header_that_is_cut_is_refused(data: st.DataObject) -> None:
    content = header([("a" * 40, b"HEAD")], ["b" * 40])
    with pytest.raises(BundleError):
        parse_header(content[: data.draw(st.integers(0, len(content) - 1))], LIMITS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header([], []), "no head"),
        (header([(f"{n:040x}", b"x") for n in range(4)], []), "heads"),
        (header([("a" * 40, b"x")], [f"{n:040x}" for n in range(3)]), "prerequisites"),
        (header([("a" * 40, b"x")], [], objects=11), "objects"),
        (header([("a" * 40, b"x" * 70_000)], []), "bundle"),
        (header([("A" * 40, b"x")], []), "damaged"),
        (b"# v3 git bundle\n@filter=blob:none\n" + b"a" * 40 + b" x\n\n" + pack(1), "filter"),
        (
            b"# v3 git bundle\n@object-format=sha256\n" + b"a" * 64 + b" x\n\n" + pack(1),
            "sha256",
        ),
    ],
)
def test_too_much_is_refused_by_name(content: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        parse_header(content, SMALL)
