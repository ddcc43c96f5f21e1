"""The executor of this machine: a checkout, a leased device, and a shim."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autohypothesis import system
from autohypothesis.engine import devices, guard, recovery, shim
from autohypothesis.engine.collect import collect
from autohypothesis.engine.environment import (
    TrainingCommand,
    child_environment,
    compile_cache_folder,
    compile_cache_variables,
    scoring_environment,
    site_folders,
    start_compile_cache,
    training_command,
    version_of,
)
from autohypothesis.engine.executor import Handle, Resources, RunSpec, RunState, identity_of
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.isolation import Surroundings, link_home, sandbox_kind
from autohypothesis.engine.scoring import ScoringPlace, scorer_for
from autohypothesis.engine.shim import Device, Launch, deadline
from autohypothesis.engine.task import Budget, Task, data_hash_with, platform_key, task_hash
from autohypothesis.engine.untracked_files import lacking
from autohypothesis.engine.workspace import Checkout, Export, Workspace, evaluator_of
from autohypothesis.errors import LaunchError, LeaseError
from autohypothesis.records import bundles
from autohypothesis.records.files import to_json, write_atomic, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.git_facts import Entry
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.sandbox import Confinement
from autohypothesis.schema import Metadata, Result, Runtime, now

LAST_STEPS_S = 10.0
"""How long a shim that has written exit.json may take to let go of its lease."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what one experiment runs: all that is known before its shim starts."""

    spec: RunSpec
    run: RunPaths
    files: Checkout
    device: Device
    inputs: Inputs
    budget: Budget
    command: TrainingCommand
    evaluator: Path | None
    around: Surroundings
    temporary: Path
    """A folder of its own in the system's temporary folder, where paths are short enough for
    sockets; removed when the run is collected."""

    @property
    def checkout(self) -> Path:
        return self.files.path

    @property
    def home(self) -> Literal["own", "links", "kept"]:
        """A script whose inputs no task names may have them in the user's home folder."""
        task = self.spec.task
        if task.scorer.type != "log" or task.inputs or task.isolation_level == "strict":
            return "own"
        return "kept" if self.around.kind == "none" else "links"

    @property
    def is_timed(self) -> bool:
        """Whether a slower machine makes a worse number: not where a program scores what is there,
        unless somebody said for how long something trains."""
        return self.spec.task.scorer.type != "command" or self.budget_is_known

    @property
    def budget_is_known(self) -> bool:
        """Whether anybody said how long the training trains."""
        reported = any(report.budget for report in self.inputs.reports.values())
        return reported or self.spec.task.run.budget is not None


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs experiments of one repository, each in the export of its worker."""

    repository: Repository
    layout: Layout

    def submit(self, spec: RunSpec) -> Handle:
        """See `Executor.submit`. The worker's export must be free."""
        warm = shim.warm(self.layout.run(spec.experiment_id), spec.experiment_id)
        try:
            return self._submit(spec, warm)
        finally:
            shim.dismiss(warm)

    def _submit(self, spec: RunSpec, warm: Any) -> Handle:
        """`submit`, with a shim that gets ready meanwhile."""
        root, handle = self.repository.root, Handle(spec.experiment_id)
        files = Export(self.repository, spec.worker_id).checkout(spec.commit, spec.task)
        inputs = locate_inputs(spec.task, files.path, root, os.environ)
        command = training_command(spec.task, root, os.environ)
        entries = self.repository.entries(spec.commit)
        sites = site_folders(command.python) if command.python else ()
        before = guard.look(files.path, spec.commit, files.files, sites, files.copies, files.links)
        evaluator = evaluator_of(self.repository, spec.commit, spec.task)
        with devices.choosing(spec.experiment_id):
            device = devices.first_free(offered(spec.resources, inputs))
            on_gpu = device.kind == "cuda"
            kind = sandbox_kind(spec.task, gpus=on_gpu)
            place = Place(
                spec=spec,
                run=self.layout.run(spec.experiment_id),
                files=files,
                device=device,
                inputs=inputs,
                budget=inputs.budget(spec.task),
                command=command,
                evaluator=evaluator,
                around=Surroundings(
                    self.repository,
                    spec.task,
                    kind,
                    data=inputs.data,
                    held_out=inputs.held_out,
                    python=command.python,
                    linked=files.linked,
                    gpus=on_gpu,
                ),
                temporary=Path(tempfile.mkdtemp(prefix="ah-")),
            )
            self._write_bundle(place, before, entries)
            self._start(place, handle, warm)
        return handle

    def offer(self, task: Task, inputs: Inputs) -> None:
        """See `Offers.offer`."""
        devices.first_free(offered(Resources(kind=task.run.device), inputs))

    def poll(self, handle: Handle) -> RunState:
        """See `Executor.poll`. A shim that is past all its limits is ended first."""
        run = self.layout.run(handle.experiment_id)
        state = shim.status(str(run.folder))
        ended = state == "running" and recovery.end_overdue(run)
        return shim.status(str(run.folder)) if ended else state

    def notice(self, handle: Handle) -> str:
        """See `Notices.notice`."""
        return recovery.stopped(self.layout.run(handle.experiment_id))

    def wait(self, handle: Handle, timeout: float) -> None:
        """See `Waits.wait`."""
        running = shim.attach(str(self.layout.run(handle.experiment_id).folder))
        if running is None or not running.pid:
            time.sleep(timeout)
        else:
            shim.wait(running, timeout)

    def cancel(self, handle: Handle) -> None:
        run = self.layout.run(handle.experiment_id)
        folder = str(run.folder)
        running = shim.attach(folder)
        if running is None and run.folder.is_dir() and not shim.forbid(folder):
            running = shim.attach(folder)  # it was just about to say that it has begun
        if running is not None:
            shim.cancel(running)

    def collect(self, handle: Handle) -> Result:
        ended = shim.attach(str(self.layout.run(handle.experiment_id).folder))
        if ended is not None and self.poll(handle) == "finished":
            shim.wait(ended, LAST_STEPS_S)
        return collect(self.repository, self.layout, handle.experiment_id)

    def _start(self, place: Place, handle: Handle, warm: Any) -> None:
        """Start the shim, and see it hold its lease or end, so that others may choose."""
        shim.start(self._launch(place), warm)
        devices.await_taken(
            place.device, handle.experiment_id, ended=lambda: self.poll(handle) != "running"
        )

    # ── before the shim ───────────────────────────────────────────────────────────────────

    def _write_bundle(
        self, place: Place, before: guard.Before, entries: Mapping[str, Entry]
    ) -> None:
        """Everything about the run that is known before it; a kill from here on loses nothing."""
        spec, run = place.spec, place.run
        run.folder.mkdir(parents=True)
        run.out.mkdir()
        run.clock_in_out.touch()
        if spec.task.scorer.type == "model":
            run.weights.symlink_to(run.weights_in_out.relative_to(run.folder))
        if place.home != "kept":
            run.home.mkdir()
        run.scoring_home.mkdir()
        if place.home == "links":
            link_home(run)
        local = {
            "checkout": str(place.checkout),
            "temporary": str(place.temporary),
            "before": before.model_dump(mode="json"),
            "started_at": time.time(),
            "starter": {"pid": os.getpid(), "start": system.process_start(os.getpid())},
        }
        write_atomic(run.local, to_json(local), durable=False)
        write_json(run.run_spec, spec.model_dump(mode="json"), durable=False)
        write_atomic(run.diff, spec.diff.encode("utf-8", "surrogateescape"), durable=False)
        bundles.write_config(run, spec.config)
        hashed = task_hash(spec.task, guard.protected_blobs(spec.task, entries))
        torch = version_of("torch", before.distributions)
        lacks = lacking(self.repository, spec.task).lines()
        metadata = _metadata(place, hashed, torch, lacks)
        bundles.write_metadata(run, metadata)
        if place.home != "kept":
            key = metadata.runtime.platform_key
            seed = compile_cache_folder(self.repository.common_dir, key)
            start_compile_cache(run.home, seed)

    def _environment(self, place: Place) -> dict[str, str]:
        spec = place.spec
        environment = child_environment(
            os.environ,
            experiment_id=spec.experiment_id,
            run_folder=place.run.out,
            seed=spec.seed,
            save_weights=spec.task.scorer.type == "model",
            home=None if place.home == "kept" else place.run.home,
            threads=1 if place.device.kind == "cpu" else None,
            cuda_device=place.device.uuid,
            extra={
                **place.inputs.environment,
                **place.command.environment,
                **({} if place.home == "kept" else compile_cache_variables(place.run.home)),
                **spec.task.run.env,
            },
        )
        return place.around.environment(environment, place.temporary)

    def _launch(self, place: Place) -> Launch:
        spec, inputs = place.spec, place.inputs
        seconds = place.budget.seconds if place.budget_is_known else None
        limit = spec.task.run.deadline_seconds or deadline(
            inputs.start_allowance_s, seconds, place.budget.clock, inputs.evaluation_allowance_s
        )
        environment = self._environment(place)
        around, evaluator = place.around, place.evaluator
        score = scorer_for(spec.task).command(
            self._scoring(place, scoring_environment(environment, place.run.scoring_home))
        )
        if score is not None:
            granted = around.scoring(place.checkout, place.run, evaluator)
            score = score._replace(command=self._confined(place, score.command, granted))
        training = around.training(place.checkout, place.run, place.temporary)
        return Launch(
            experiment_id=spec.experiment_id,
            run_dir=str(place.run.folder),
            cwd=str(place.checkout / spec.task.run.cwd),
            command=self._confined(place, place.command.words, training),
            env=environment,
            deadline_seconds=limit,
            budget_seconds=seconds,
            clock=place.budget.clock,
            clock_required=spec.task.scorer.type == "model",
            lease=devices.lease_of(place.device),
            device=place.device,
            score=score,
            contention_kernel=place.device.kind == "cpu" and place.is_timed,
            metric=spec.task.objective.metric,
            max_processes=spec.task.run.max_processes,
            worker_id=spec.worker_id,
            gpu_id=devices.name_of(place.device),
            commit=spec.commit,
            hypothesis_id=spec.hypothesis_id,
            title=spec.title,
            repository=str(self.repository.root),
            watched=tuple(
                str(path)
                for path in (
                    self.layout.plan(spec.experiment_id),
                    self.layout.plan_page(spec.experiment_id),
                )
            ),
        )

    def _confined(
        self, place: Place, words: tuple[str, ...], granted: Confinement
    ) -> tuple[str, ...]:
        """Return `words` as they run in the sandbox of the run.

        Raises:
            LaunchError: there is no such program.
        """
        if place.around.kind == "none":
            return words
        try:
            return place.around.command(words, granted, place.checkout / place.spec.task.run.cwd)
        except FileNotFoundError as error:
            raise LaunchError(str(error), hint="check run.command and scorer.command") from error

    def _scoring(self, place: Place, environment: Mapping[str, str]) -> ScoringPlace:
        return ScoringPlace(
            run=place.run,
            root=self.repository.root,
            checkout=place.checkout,
            artifact=place.checkout / place.spec.task.artifacts[0],
            evaluator=place.evaluator,
            environment=environment,
        )


def offered(wanted: Resources, inputs: Inputs) -> list[Device]:
    """The devices that a training with these inputs may run on.

    Raises:
        LeaseError: there is none of that kind.
    """
    kind: Literal["cpu", "cuda"] = "cuda" if inputs.device == "cuda" else "cpu"
    if not inputs.device:
        kind = wanted.kind or devices.best_kind()
    every = devices.devices(kind)
    found = [one for one in every if wanted.device in (None, devices.name_of(one))]
    if not found:
        raise LeaseError(
            f"{wanted.device} is no {kind} device of this machine: "
            f"{', '.join(devices.name_of(one) for one in every)}",
            hint="make the fleet's workers anew: python orchestrator.py init-fleet",
        )
    return found


def workspace_of(
    repository: Repository, worker: str, tag: str, branch: str | None = None
) -> Workspace:
    """The worktree of one worker."""
    return Workspace.named(repository, worker, branch=branch, fleet=tag, worker=worker)


def _metadata(place: Place, hashed: str, torch: str, lacks: list[str]) -> Metadata:
    spec, inputs = place.spec, place.inputs
    data_hash = data_hash_with(inputs.data_hash, place.files.included)
    return Metadata(
        recorded_at=now(),
        run=identity_of(spec, devices.name_of(place.device)),
        runtime=Runtime(
            commit=spec.commit,
            parent_commit=spec.parent_commit,
            gpu_name=place.device.name,
            diff_stat=spec.diff_stat,
            diff_hash=spec.diff_hash,
            lines_added=spec.lines_added,
            lines_removed=spec.lines_removed,
            platform_key=platform_key(
                device_name=place.device.name,
                profile_hash=inputs.profile_hash,
                data_hash=data_hash,
                task_hash=hashed,
                budget_seconds=place.budget.seconds,
                clock=place.budget.clock,
            ),
            profile=inputs.profile,
            data_hash=data_hash,
            task_hash=hashed,
            budget_seconds=place.budget.seconds,
            clock=place.budget.clock,
            torch_version=torch,
            sandbox=place.around.kind,
            isolation=spec.task.isolation_level,
            included=dict(place.files.included),
            checkout_lacks=lacks,
            home=place.home,
        ),
    )
