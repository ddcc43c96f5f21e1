"""An observer without processes: workers that run one claim at a time, and proposers by list."""

from __future__ import annotations

import io
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autohypothesis.engine import evidence, runner
from autohypothesis.engine.attestation import attest
from autohypothesis.engine.experiment import Executor, Experiment, RunSpec, RunState, metadata_of
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.mutator import RecordedRefusalError
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import result_of_log
from autohypothesis.engine.task import protected_blobs, task_hash
from autohypothesis.errors import AutohypothesisError, ChangeError, PreflightError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.observer import proposals
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.fleet.observer.scheduling import SearchLimits
from autohypothesis.fleet.proposing import Proposer, Situation
from autohypothesis.records import bundles
from autohypothesis.records.files import load, read_json, write_atomic, write_json
from autohypothesis.records.locks import Process, hold
from autohypothesis.schema import Heartbeat, Hypothesis, Manifest, Proposal, Result, Worker, now

PAUSE_S = 0.02
"""Between two turns of which nothing came: who waits for a proposer keeps no core busy."""


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is voided because other tests are busy beside it, and no proposer rests for long."""
    monkeypatch.setattr(evidence, "ENOUGH", 1_000_000)
    monkeypatch.setattr(proposals, "FIRST_PAUSE_S", 0.05)


@dataclass
class Listed:
    """A proposer that fails with `error`, or answers with what it was given, a list at a time."""

    answers: list[Sequence[Proposal]] = field(default_factory=list)
    name: str = "listed"
    told: list[Situation] = field(default_factory=list)
    error: BaseException | None = None

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        self.told.append(situation)
        if self.error is not None:
            raise self.error
        return self.answers.pop(0) if self.answers else []


@dataclass
class Early(Listed):
    """One that needs no results, as `search` does."""

    asked_early: bool = True


def broken(error: BaseException | None = None) -> Listed:
    return Listed(name="broken", error=error or AutohypothesisError("it has no key"))


@dataclass
class Thinker:
    """A proposer that thinks until it is told to stop."""

    name: str = "thinker"
    done: threading.Event = field(default_factory=threading.Event)
    answer: Sequence[Proposal] = ()

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        self.done.wait(120)
        return self.answer


def members(project: Project, *names: str, devices: Sequence[str] = ()) -> None:
    """Puts workers into the manifest."""
    manifest = Manifest.model_validate(read_json(project.layout.manifest))
    manifest.workers = [
        Worker(worker_id=name, gpu_id=name, device=devices[i] if devices else f"dev-{name}")
        for i, name in enumerate(names)
    ]
    write_json(project.layout.manifest, manifest)


@dataclass(frozen=True)
class InstantExecutor(Executor):
    """Runs train.py in this process when the run is collected: no checkout, lease or shim."""

    project: Project

    def submit(self, spec: RunSpec) -> str:
        run = self.project.layout.run(spec.experiment_id)
        run.folder.mkdir(parents=True)
        write_json(run.run_spec, spec, durable=False)
        write_atomic(run.diff, spec.diff, durable=False)
        bundles.write_config(run, spec.config)
        task, entries = self.project.task, self.project.repository.entries(spec.commit)
        hashes = dict.fromkeys(("platform_key", "data_hash"), "0" * 64)
        hashes["task_hash"] = task_hash(task, protected_blobs(task, entries))
        bundles.write_metadata(run, metadata_of(spec, "cpu-0", gpu_name="CPU", **hashes))
        return spec.experiment_id

    def poll(self, experiment_id: str) -> RunState:
        return "finished"

    def collect(self, experiment_id: str) -> Result:
        run = self.project.layout.run(experiment_id)
        spec = load(RunSpec, run.run_spec)
        script = self.project.repository.show_file(spec.commit, "train.py").decode()
        run.log.write_text(_printed(script, spec), encoding="utf-8")
        result = result_of_log(spec, run.log.read_text(encoding="utf-8"))
        bundles.write_result(run, result)
        attest(self.project.repository, self.project.layout, run, result)
        return result


def _printed(script: str, spec: RunSpec) -> str:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        patched.setenv("SEED", str(spec.seed))
        try:
            exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})
        except Exception:
            traceback.print_exc(file=printed)
    return printed.getvalue()


@dataclass
class Hands:
    """A worker of this process: it lives as long as the test, and works when it is told.

    It is put into the manifest, unless that has it already.

    With `trains` its runs are trainings with a shim, else they end at once.
    """

    project: Project
    name: str
    spoil: Callable[[Hypothesis, str, Result], Result] | None = None
    trains: bool = False

    def __post_init__(self) -> None:
        self.executor: Executor = InstantExecutor(self.project)
        if self.trains:
            self.executor = LocalExecutor(self.project.repository, self.project.layout)
        known = Manifest.model_validate(read_json(self.project.layout.manifest)).workers
        if self.name not in (names := [worker.worker_id for worker in known]):
            members(self.project, *names, self.name)
        self.beat()

    def beat(self, state: str = "idle") -> None:
        own = Process.own()
        presence.write_heartbeat(
            self.project.layout,
            Heartbeat.model_validate(
                {
                    "worker_id": self.name, "node_id": own.host, "pid": own.pid,
                    "process_start": own.start, "state": state, "updated_at": now(),
                }
            ),
        )  # fmt: skip

    def claim(self, observer: Observer) -> Hypothesis | None:
        return observer.queue.claim(self.name)

    def begin(self, one: Hypothesis) -> str:
        """Submits what was claimed."""
        return self.executor.submit(runner.plan(self.project, Experiment.of(one), self.name))

    def end(self, observer: Observer, one: Hypothesis, experiment_id: str) -> Result:
        """Waits for it, collects it, and moves the hypothesis on."""
        runner.follow(self.project, self.executor, experiment_id)
        result = self.executor.collect(experiment_id)
        if self.spoil is not None:
            result = self.spoil(one, experiment_id, result)
            run = self.project.layout.run(experiment_id)
            write_json(run.result, result)
            attest(self.project.repository, self.project.layout, run, result)
        observer.queue.finish(one.hypothesis_id, self.name)
        return result

    def work(self, observer: Observer) -> str | None:
        """One claim from end to end; the experiment's id."""
        one = self.claim(observer)
        if one is None:
            return None
        try:
            experiment_id = self.begin(one)
        except RecordedRefusalError as error:
            observer.queue.finish(one.hypothesis_id, self.name)
            return error.experiment_id
        except (ChangeError, PreflightError) as error:
            observer.queue.finish(
                one.hypothesis_id, self.name, closed="abandoned", outcome=str(error)
            )
            return None
        self.end(observer, one, experiment_id)
        return experiment_id


def observer(
    project: Project, *proposers: Proposer, most: int | None = None, **limits: object
) -> Observer:
    return Observer(project, proposers, limits=SearchLimits(max_experiments=most, **limits))  # type: ignore[arg-type]


def observe(tell: Callable[[str], None], root: Path, most: int | None, *named: Proposer) -> None:
    """An observer as a process of its own: see `forked`."""
    project = Project.open(root)
    with Stop() as stop, hold(project.layout, "observer", doing="a test"):
        tell(observer(project, *named, most=most).run(stop))


def turns(
    watched: Observer, reached: Callable[[], object], *hands: Hands, seconds: float = 60.0
) -> None:
    """Turn after turn, with `hands` at work, until something is so."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not so after {seconds:g} s; {watched.status}"
        watched.turn()
        ran = [hand.work(watched) for hand in hands]
        if not any(ran):
            time.sleep(PAUSE_S)


def idea(title: str = "", /, **overrides: object) -> Proposal:
    title = title or ", ".join(f"{name} {value}" for name, value in overrides.items())
    return Proposal.model_validate(
        {"title": title, "rationale": "to see", "config_overrides": overrides}
    )
