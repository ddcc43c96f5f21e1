"""What the shim is told: one training, its limits, its lease and its scoring, as a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from autohypothesis.errors import LaunchError
from autohypothesis.records.layout import RunPaths

Clock = Literal["wall", "cpu"]

FOREIGN_DEADLINE_S = 600.0
_SLACK_S = 30.0
_DEVICE_S = 20.0  # until NVML answers
_DEADLINE_FACTOR: Mapping[str, float] = {"wall": 2.0, "cpu": 4.0}


def deadline(
    start_allowance: float,
    budget: float | None,
    clock: Clock,
    evaluation_allowance: float,
) -> float:
    """Seconds of wall clock after which a training is ended.

    A CPU budget may take four times its length on a busy machine. Without a budget, which means a
    foreign script without a task file, it is 600 s whatever the allowances.
    """
    if budget is None:
        return FOREIGN_DEADLINE_S
    return start_allowance + _DEADLINE_FACTOR[clock] * budget + evaluation_allowance


class Lease(NamedTuple):
    """The lock file that stands for a device, and the name people know the device by."""

    path: str
    name: str
    wait_s: float = 0.5  # a loser asks this long: the last holder may be closing, or be probed


class Device(NamedTuple):
    """Where the training runs. `cores` pins it, `uuid` is a GPU's NVML and CUDA name."""

    kind: Literal["cpu", "cuda"] = "cpu"
    uuid: str | None = None
    name: str = "CPU"
    cores: tuple[int, ...] | None = None


class ScoreCommand(NamedTuple):
    """Runs after a training that exited 0, under the same lease; the last JSON line it prints is
    the score."""

    command: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    timeout_s: float


class _Launch(NamedTuple):
    """The fields of `Launch`. Times in seconds, paths absolute.

    `env` is the whole environment of the training. `clock_required` is for a task whose budget
    clock is ours: no line in clock.jsonl is then evidence of `invalid`. `metric` is the name whose
    lines are counted and read from the log. `watched` are records outside of the run folder that
    nothing may change meanwhile. `seal` is the SHA-256 of the word that this shim alone is told,
    and writes into exit.json.
    """

    experiment_id: str
    run_dir: str
    cwd: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    deadline_seconds: float
    budget_seconds: float | None = None
    clock: Clock = "wall"
    clock_required: bool = False
    stop_grace_s: float = 5.0
    lease: Lease | None = None
    device: Device = Device()
    score: ScoreCommand | None = None
    contention_kernel: bool = False
    metric: str = "val_bpb"
    log_limit_bytes: int = 16 << 20
    heartbeat_s: float = 5.0
    memory_back_s: float = 15.0
    max_processes: int = 512
    worker_id: str | None = None
    gpu_id: str | None = None
    commit: str | None = None
    hypothesis_id: str | None = None
    title: str | None = None
    repository: str | None = None
    watched: tuple[str, ...] = ()
    seal: str = ""


class Launch(_Launch):
    """One experiment, as the shim runs it.

    A named tuple like its parts, since a dataclass costs the shim a third of its start-up.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # the checker knows the fields

        def __new__(cls, *args: Any, **named: Any) -> Launch:
            launch = super().__new__(cls, *args, **named)
            launch._check()
            return launch

    def _check(self) -> None:
        """Raises LaunchError for what cannot be run."""
        for name in ("run_dir", "cwd"):
            if not os.path.isabs(getattr(self, name)):
                raise LaunchError(f"{name} {getattr(self, name)!r} is not an absolute path")
        if not self.command:
            raise LaunchError(f"{self.experiment_id} has an empty command")
        if self.clock not in _DEADLINE_FACTOR:
            raise LaunchError(f"clock {self.clock!r} is neither 'wall' nor 'cpu'")
        if self.deadline_seconds <= 0:
            raise LaunchError(f"deadline_seconds {self.deadline_seconds} is not positive")
        if self.log_limit_bytes < 4096:
            raise LaunchError(f"log_limit_bytes {self.log_limit_bytes} is under 4096")

    @property
    def run(self) -> RunPaths:
        """The files of the run folder."""
        return RunPaths(Path(self.run_dir))

    @property
    def overdue_after(self) -> tuple[float, float]:
        """When those who wait end the shim, in seconds after its begin: first while it trains,
        then while it scores. It keeps its own limits by then, unless it is stopped or hangs."""
        device = self.memory_back_s + _DEVICE_S if self.device.kind == "cuda" else 0.0
        training = self.deadline_seconds + self.stop_grace_s + device + _SLACK_S
        scoring = self.score.timeout_s + self.stop_grace_s if self.score else 0.0
        return training, training + scoring

    def to_json(self) -> bytes:
        parts = {
            name: part._asdict()
            for name, part in (
                ("lease", self.lease),
                ("device", self.device),
                ("score", self.score),
            )
            if part is not None
        }
        return json.dumps({**self._asdict(), **parts}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Launch:
        """Raises LaunchError for anything but a whole launch file."""
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise LaunchError(f"launch.json is not JSON: {error}") from error
        values = _known(cls, raw)
        for name, part in (("lease", Lease), ("device", Device), ("score", ScoreCommand)):
            if values.get(name) is not None:
                values[name] = part(**_known(part, values[name]))
        return cls(**values)


def _known(cls: type[Any], raw: object) -> dict[str, Any]:
    """`raw` as arguments of a named tuple: every key known, none missing, lists as tuples."""
    if not isinstance(raw, dict):
        raise LaunchError(f"{cls.__name__} in launch.json is not an object")
    if unknown := sorted(raw.keys() - set(cls._fields)):
        raise LaunchError(f"launch.json has unknown {cls.__name__} fields: {', '.join(unknown)}")
    required = set(cls._fields) - cls._field_defaults.keys()
    if missing := sorted(required - raw.keys()):
        raise LaunchError(f"launch.json lacks {cls.__name__} fields: {', '.join(missing)}")
    return {name: _frozen(value) for name, value in raw.items()}


def _frozen(value: object) -> object:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return tuple(value) if is_list else value  # type: ignore[arg-type]
