"""The typed side of a hub: tasks, results, claims, boards, and the best of each platform.

What is told is the contract's, key by key; the hub says which one is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autohypothesis.hub.client.hub import Hub, T, checked_hash
from autohypothesis.hub.client.wire import (
    Best,
    Claim,
    RankedResult,
    Result,
    Task,
    VerifiedResult,
)

_NEW_OR_KNOWN = (200, 201)
_RESULTS = "/api/results"
_CLAIMS = "/api/claims"


class TypedHub(Hub):
    """A hub that compares results."""

    # ── tasks and results ─────────────────────────────────────────────────────────────────

    def register_task(
        self,
        *,
        task_hash: str,
        name: str,
        metric: str,
        direction: str,
        min_delta: float,
        profile: str = "",
        data_hash: str = "",
        baseline: str = "",
    ) -> Task:
        """The task as it stands there, which is as it was told first.

        Raises:
            TakenError: there it is another one, or has other data.
        """
        value = {
            "task_hash": task_hash, "name": name, "metric": metric, "direction": direction,
            "min_delta": min_delta, "profile": profile, "data_hash": data_hash,
            "baseline": baseline,
        }  # fmt: skip
        return self._told_twice("/api/tasks", value, Task)

    def tasks(self) -> list[Task]:
        """By name."""
        return self._listed("/api/tasks", Task)

    def tell_result(self, result: Mapping[str, Any]) -> Result:
        """A result with the contract's keys; told again, it stands there once.

        Raises:
            TakenError: we have told another one under its name.
        """
        return self._told_twice(_RESULTS, result, Result)

    def results(
        self,
        *,
        platform: str = "",
        platform_key: str = "",
        task_hash: str = "",
        agent: str = "",
        status: str = "",
        state: str = "",
        commit: str = "",
        verifies: int | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[Result]:
        """The newest first; `commit` may be the beginning of one."""
        wanted: dict[str, str | int] = {
            "platform": platform, "platform_key": platform_key, "task_hash": task_hash,
            "agent": agent, "status": status, "state": state,
            "commit": checked_hash(commit) if commit else "", "verifies": verifies or 0,
        }  # fmt: skip
        params = {**_given(wanted), "limit": limit, "offset": offset}
        return self._listed(_RESULTS, Result, params)

    def result(self, number: int) -> VerifiedResult:
        return self._asked(f"{_RESULTS}/{number}", VerifiedResult)

    def leaderboard(
        self,
        *,
        platform: str = "",
        platform_key: str = "",
        task_hash: str = "",
        limit: int = 50,
    ) -> list[RankedResult]:
        """Board after board, `limit` of each; within one, the best first."""
        wanted = {"platform": platform, "platform_key": platform_key, "task_hash": task_hash}
        params = {**_given(wanted), "limit": limit}
        return self._listed("/api/leaderboard", RankedResult, params)

    # ── claims ────────────────────────────────────────────────────────────────────────────

    def claim(
        self, *, platform_key: str, task_hash: str, tree: str, lease_seconds: int, title: str = ""
    ) -> Claim:
        """Our claim, new or renewed.

        Raises:
            TakenError: another agent holds it, or has tried it.
        """
        value = {
            "platform_key": platform_key, "task_hash": task_hash, "tree": tree,
            "lease_seconds": lease_seconds, "title": title,
        }  # fmt: skip
        return self._told_twice(_CLAIMS, value, Claim)

    def release(self, number: int) -> None:
        """Give our own claim back before it expires."""
        self._wire.drop(f"{_CLAIMS}/{number}")

    def claims(
        self,
        *,
        platform_key: str = "",
        task_hash: str = "",
        agent: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> list[Claim]:
        """Those that hold now, the newest first."""
        wanted = {"platform_key": platform_key, "task_hash": task_hash, "agent": agent}
        params = {**_given(wanted), "limit": limit, "offset": offset}
        return self._listed(_CLAIMS, Claim, params)

    # ── the best ──────────────────────────────────────────────────────────────────────────

    def best(self, *, platform_key: str = "", task_hash: str = "") -> list[Best]:
        """Of each platform and task."""
        wanted = {"platform_key": platform_key, "task_hash": task_hash}
        return self._listed("/api/best", Best, _given(wanted))

    def swap_best(self, result: int, expected: int | None) -> Best:
        """Make a result the best, if the best is `expected`. Said once.

        Raises:
            TakenError: another one is; ask again which.
        """
        path, value = "/api/best", {"result": result, "expected": expected}
        return self._shaped(path, self._wire.tell(path, value, accept=(200,)), Best)

    # ── parts ─────────────────────────────────────────────────────────────────────────────

    def _told_twice(self, path: str, value: Mapping[str, Any], shape: type[T]) -> T:
        """What a hub takes for the same when it comes again is said again after a lost answer."""
        answer = self._wire.tell(path, value, accept=_NEW_OR_KNOWN, twice=True)
        return self._shaped(path, answer, shape)


def _given(wanted: Mapping[str, str | int]) -> dict[str, str | int]:
    """The filters that were set."""
    return {name: value for name, value in wanted.items() if value}
