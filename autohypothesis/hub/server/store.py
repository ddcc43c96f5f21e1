"""The bare repository of commits. The hub never checks out, merges or collects garbage.

Each indexed commit has a ref of its own, `refs/commits/<hash>`, so that no `git gc` drops it, and
so that a fetch needs no ref of the moment.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from autohypothesis.errors import GitError
from autohypothesis.hub.server.refusals import HubRefusalError, disk_full
from autohypothesis.hub.server.settings import HubLimits
from autohypothesis.records.git_limited import Bounds, Ended, run

REFS = "refs/commits/"
_READERS = 4
"""Fetches and diffs at one time; the others wait."""
KEPT_DIFFS = 32 << 20
"""Bytes of diffs that are kept for pages."""
_PATIENCE_S = 2.0
_SENDING = Bounds(memory=1 << 30, cpu_seconds=60)


class CommitStore:
    def __init__(self, path: Path, passing: Path, limits: HubLimits) -> None:
        self.path = path
        self._passing = passing
        self._limits = limits
        self._slots = threading.BoundedSemaphore(_READERS)

    def make(self) -> None:
        """The repository, if it is not there yet. Half of one, left by a kill, is made whole."""
        if not (self.path / "HEAD").is_file() or not (self.path / "objects").is_dir():
            words = "init --quiet --bare --template= --object-format=sha1"
            self._must(run(words, [str(self.path)], repository=self.path, bounds=Bounds()))
        self.packs.mkdir(parents=True, exist_ok=True)

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def packs(self) -> Path:
        return self.objects / "pack"

    def check(self) -> None:
        """Raises GitError when it is no repository that can be written."""
        self._must(run("rev-parse --is-bare-repository", repository=self.path, bounds=Bounds()))
        if not os.access(self.packs, os.W_OK):
            raise GitError(f"{self.packs} cannot be written")

    def anchor(self, names: Iterable[str]) -> None:
        """A ref for each commit; all of them, or it raises."""
        self._update(f"update {REFS}{name} {name}" for name in names)

    def release(self, names: Iterable[str]) -> None:
        """Takes refs away, those that are there."""
        self._update(f"delete {REFS}{name}" for name in names)

    def anchored(self) -> set[str]:
        """Every commit that has a ref."""
        answer = run(
            "for-each-ref --format=%(refname)", [REFS], repository=self.path, bounds=_SENDING
        )
        self._must(answer)
        return {line.removeprefix(REFS) for line in answer.text.splitlines()}

    def present(self, names: Iterable[str]) -> set[str]:
        """Which of these objects are here."""
        asked = "".join(f"{name}\n" for name in names).encode()
        if not asked:
            return set()
        answer = run(
            "cat-file --batch-check --buffer", repository=self.path, bounds=Bounds(), stdin=asked
        )
        self._must(answer)
        facts = (line.split() for line in answer.text.splitlines())
        return {fact[0] for fact in facts if len(fact) == 3}

    def bundle(self, name: str) -> IO[bytes]:
        """A file, to be closed, with a self-contained bundle of `name` and all before it.

        Raises:
            HubRefusalError: it is larger or takes longer than what is sent.
        """
        bounds = _SENDING.but(file=self._limits.fetch_bytes, seconds=self._limits.fetch_seconds)
        words, args = "bundle create --quiet -", [REFS + name]
        with ExitStack() as stack:
            into = stack.enter_context(tempfile.TemporaryFile(dir=self._passing))
            with self._slot():
                answer = run(words, args, repository=self.path, bounds=bounds, into=into)
            if answer.cut:
                raise HubRefusalError(
                    413, f"the bundle of {name} is more than this hub sends at once"
                )
            self._must(answer)
            into.seek(0)
            stack.pop_all()
            return into

    def diff(self, old: str, new: str) -> bytes:
        """The patch from `old` to `new`; cut after `diff_bytes`, and it says so.

        Raises:
            HubRefusalError: it takes too long.
        """
        limits = self._limits
        seconds = limits.diff_seconds
        bounds = Bounds(file=limits.diff_bytes, seconds=seconds, cpu_seconds=int(seconds) + 1)
        words = "diff --no-color --no-ext-diff --no-textconv --no-renames"
        with self._slot():
            answer = run(words, [old, new, "--"], repository=self.path, bounds=bounds)
        if answer.cut == "size":
            return answer.out + f"\n[cut after {limits.diff_bytes:,} bytes]\n".encode()
        if answer.cut:
            raise HubRefusalError(
                413, f"this diff takes longer than {seconds:g} s", hint="fetch both commits"
            )
        self._must(answer)
        return answer.out

    def index_packs(self) -> None:
        """One index over all packs. Nothing is moved or dropped."""
        answer = run("multi-pack-index write --no-progress", repository=self.path, bounds=_SENDING)
        self._must(answer)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=30):
            raise HubRefusalError(503, "too many fetches and diffs at one time", wait=5)
        try:
            yield
        finally:
            self._slots.release()

    def _update(self, commands: Iterable[str]) -> None:
        text = "".join(f"{command}\n" for command in commands).encode()
        if text:
            bounds = Bounds(seconds=120, cpu_seconds=60)
            self._must(run("update-ref --stdin", repository=self.path, bounds=bounds, stdin=text))

    def _must(self, answer: Ended) -> None:
        if answer.disk_full:
            raise disk_full()
        if answer.status:
            raise GitError(f"git in {self.path} failed: {answer.cut or answer.reason}")


@dataclass(slots=True)
class DiffCache:
    """The diffs that pages asked for last: made once each, one at a time, kept in memory.

    A commit and its parent never change, so neither does their diff. Agents' own diffs are counted
    elsewhere, and never wait for these.
    """

    kept_bytes: int = KEPT_DIFFS
    _kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _size: int = 0
    _access: threading.Lock = field(default_factory=threading.Lock)
    _making: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, count: Callable[[], None], make: Callable[[], bytes]) -> bytes:
        """The diff of commit `name`. Only one that is not kept is counted and made.

        Raises:
            HubRefusalError: what `count` and `make` raise; 503 while another one is made.
        """
        kept = self._get(name)
        if kept is not None:
            return kept
        if not self._making.acquire(timeout=_PATIENCE_S):
            raise HubRefusalError(503, "another diff is being made", hint="load this page again")
        try:
            diff = self._get(name)
            if diff is None:
                count()
                diff = make()
                self._keep(name, diff)
            return diff
        finally:
            self._making.release()

    def _get(self, name: str) -> bytes | None:
        with self._access:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _keep(self, name: str, diff: bytes) -> None:
        with self._access:
            self._kept[name] = diff
            self._size += len(diff)
            while self._size > self.kept_bytes:
                self._size -= len(self._kept.popitem(last=False)[1])
