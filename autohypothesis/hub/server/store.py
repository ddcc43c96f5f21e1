"""The bare repository of commits. The hub never checks out, merges or collects garbage.

Each indexed commit has a ref of its own, `refs/commits/<hash>`, so that no `git gc` drops it, and
so that a fetch needs no ref of the moment.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from autohypothesis.errors import GitError
from autohypothesis.hub.server.refusals import HubRefusalError, disk_full
from autohypothesis.hub.server.settings import HubLimits
from autohypothesis.records.git_call import Answer, Bounds, run

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
        self.packs = path / "objects" / "pack"
        self._passing = passing
        self._limits = limits
        self._slots = threading.BoundedSemaphore(_READERS)

    def make(self) -> None:
        """Make the repository if it is not there; half of one, left by a kill, is made whole."""
        if not (self.path / "HEAD").is_file() or not (self.path / "objects").is_dir():
            words = "init --quiet --bare --template= --object-format=sha1"
            self._git(words, [str(self.path)])
        self.packs.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Raise GitError when it is no repository that can be written."""
        self._git("rev-parse --is-bare-repository")
        if not os.access(self.packs, os.W_OK):
            raise GitError(f"{self.packs} cannot be written")

    def anchor(self, names: Iterable[str]) -> None:
        """Make a ref for each commit; all of them, or it raises."""
        self._update(f"update {REFS}{name} {name}" for name in names)

    def release(self, names: Iterable[str]) -> None:
        """Take refs away, those that are there."""
        self._update(f"delete {REFS}{name}" for name in names)

    def anchored(self) -> set[str]:
        """Return every commit that has a ref."""
        answer = self._git("for-each-ref --format=%(refname)", [REFS], bounds=_SENDING)
        return {line.removeprefix(REFS) for line in answer.text.splitlines()}

    def present(self, names: Iterable[str]) -> set[str]:
        """Return which of these objects are here."""
        asked = "".join(f"{name}\n" for name in names).encode()
        answer = self._git("cat-file --batch-check --buffer", stdin=asked)
        facts = (line.split() for line in answer.text.splitlines())
        return {fact[0] for fact in facts if len(fact) == 3}

    def bundle(self, name: str) -> IO[bytes]:
        """Return a file, to be closed, with a self-contained bundle of `name` and all before it.

        Raises:
            HubRefusalError: it is larger or takes longer than what is sent.
        """
        bounds = replace(
            _SENDING, file=self._limits.fetch_bytes, seconds=self._limits.fetch_seconds
        )
        into = tempfile.TemporaryFile(dir=self._passing)  # noqa: SIM115 (the caller closes it)
        try:
            with self._slot():
                answer = run(
                    "bundle create --quiet -", [REFS + name], repository=self.path, bounds=bounds,
                    into=into,
                )  # fmt: skip
            if answer.cut:
                raise HubRefusalError(
                    413, f"the bundle of {name} is more than this hub sends at once"
                )
            self._check(answer)
            into.seek(0)
        except BaseException:
            into.close()
            raise
        return into

    def diff(self, old: str, new: str) -> bytes:
        """Return the patch from `old` to `new`; cut after `diff_bytes`, and it says so.

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
        self._check(answer)
        return answer.out

    def index_packs(self) -> None:
        """Write one index over all packs. Nothing is moved or dropped."""
        self._git("multi-pack-index write --no-progress", bounds=_SENDING)

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
            self._git("update-ref --stdin", bounds=bounds, stdin=text)

    def _git(
        self, words: str, args: Sequence[str] = (), bounds: Bounds | None = None, stdin: bytes = b""
    ) -> Answer:
        """Run git; raise where it fails."""
        bounds = bounds or Bounds()
        answer = run(words, args, repository=self.path, bounds=bounds, stdin=stdin)
        self._check(answer)
        return answer

    def _check(self, answer: Answer) -> None:
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
    _access: threading.Lock = field(default_factory=threading.Lock)
    _making: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, count: Callable[[], None], make: Callable[[], bytes]) -> bytes:
        """Return the diff of commit `name`. Only one that is not kept is counted and made.

        Raises:
            HubRefusalError: what `count` and `make` raise; 503 while another one is made.
        """
        diff = self._get(name)
        if diff is not None:
            return diff
        if not self._making.acquire(timeout=_PATIENCE_S):
            raise HubRefusalError(503, "another diff is being made", hint="load this page again")
        try:
            diff = self._get(name)
            if diff is None:
                count()
                diff = make()
                with self._access:
                    self._kept[name] = diff
                    while sum(map(len, self._kept.values())) > self.kept_bytes:
                        self._kept.popitem(last=False)
            return diff
        finally:
            self._making.release()

    def _get(self, name: str) -> bytes | None:
        with self._access:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)
