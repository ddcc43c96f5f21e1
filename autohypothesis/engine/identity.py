"""What makes experiments comparable: the hash of a task, and the key of a platform."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from autohypothesis.engine.task import Task
from autohypothesis.schema import Clock
from autohypothesis.system import cpu_model

_COMPARED = ("run", "scorer", "objective", "constraints")
"""Sections that change what a number means. Policy, knobs and the budget of a whole search only
change what is tried next."""

BY_HAND = "by-hand on "
"""How the key of a run begins that somebody made by hand: it is compared with such runs only."""

_SHORT = (
    (r"\bH100\b", "H100"),
    (r"\bH200\b", "H200"),
    (r"\bA100\b", "A100"),
    (r"\b4090\b", "4090"),
    (r"\b3090\b", "3090"),
    (r"\b3060\b", "3060"),
    (r"\bM2 Ultra\b", "M2-Ultra"),
)


def canonical_hash(value: Any) -> str:
    """SHA-256 of `value` as JSON with sorted keys and no blanks."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def task_hash(task: Task, protected: Mapping[str, str]) -> str:
    """The resolved task with the contents of its protected files (`guard.protected_blobs`)."""
    said = task.model_dump(mode="json", include=set(_COMPARED))
    del said["objective"]["target"]  # says when to stop
    del said["run"]["device"]  # its name is in the platform's key
    for name in ("include", "git"):  # a task that does without is what it always was
        if not said["run"][name]:
            del said["run"][name]
    del said["run"]["max_processes"]  # ends a run, and changes no number
    return canonical_hash(
        {**said, "artifacts": sorted(task.artifacts), "protected": dict(protected)}
    )


def data_hash_with(data_hash: str, included: Mapping[str, str]) -> str:
    """The hash of the located data, and of the files that a checkout has beside its commit."""
    return canonical_hash([data_hash, dict(included)]) if included else data_hash


def platform_key(
    *,
    device_name: str,
    profile_hash: str,
    data_hash: str,
    task_hash: str,
    budget_seconds: float,
    clock: Clock,
) -> str:
    """Only experiments of one key are compared.

    `device_name` is the driver's, not the short one: two boards of one short name differ in speed.
    So do two processors, which are all called CPU: there the model counts.
    """
    return canonical_hash(
        {
            "device": f"CPU {cpu_model()}" if device_name == "CPU" else device_name,
            "profile": profile_hash,
            "data": data_hash,
            "task": task_hash,
            "budget": float(budget_seconds),
            "clock": clock,
        }
    )


def short_device_name(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` as people say it: H100. What nobody has a short name for: a slug."""
    if name.strip().upper() == "CPU" or not name.strip():
        return "CPU"
    for pattern, short in _SHORT:
        if re.search(pattern, name, re.IGNORECASE):
            return short
    words = re.sub(r"\b(?:NVIDIA|GeForce|AMD|Apple)\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-") or "device"
