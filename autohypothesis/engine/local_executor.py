"""The executor of this machine: a checkout, a leased device, and a shim."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autohypothesis import system
from autohypothesis.engine import devices, shim
from autohypothesis.engine.collect import collect, end_overdue
from autohypothesis.engine.devices import Device
from autohypothesis.engine.environment import (
    INHERITED,
    NO_OP_COMMAND,
    THREAD_VARIABLES,
    TrainingCommand,
    compile_cache_folder,
    compile_cache_variables,
    scoring_environment,
    site_folders,
    start_compile_cache,
    training_command,
    version_of,
)
from autohypothesis.engine.experiment import Executor, Resources, RunSpec, RunState, metadata_of
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.program import TaskSandbox, link_home, sandbox_kind
from autohypothesis.engine.scoring import order_of, scorer_for
from autohypothesis.engine.shim import Launch, ScoreCommand, deadline
from autohypothesis.engine.task import (
    data_hash_with,
    platform_key,
    protected_blobs,
    task_hash,
)
from autohypothesis.engine.untracked_files import lacking
from autohypothesis.engine.workspace import Checkout, CheckoutBaseline, Export, take_baseline
from autohypothesis.errors import LeaseError
from autohypothesis.records import bundles
from autohypothesis.records.files import (
    read_object,
    remove_folder,
    to_json,
    write_atomic,
    write_json,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.signing import own_signer
from autohypothesis.schema import Metadata, Result

SHIM_EXIT_S = 10.0
"""Seconds that a shim that has written exit.json may take to release its lease."""


@dataclass(frozen=True, slots=True)
class RunSetup:
    """Checkout, command and limits of one experiment: all that is known before its shim starts."""

    spec: RunSpec
    run: RunPaths
    files: Checkout
    device: Device
    inputs: Inputs
    command: TrainingCommand
    evaluator: Path | None
    candidate: Path
    """What is scored: the checkout, or a copy of it that no training can write to."""
    sandbox: TaskSandbox
    temporary: Path
    """A folder of its own in the system's temporary folder, where paths are short enough for
    sockets; removed when the run is collected."""
    order: str = ""
    """That of a score which is repeated; empty for a new one."""

    @property
    def checkout(self) -> Path:
        return self.files.path

    @property
    def cwd(self) -> Path:
        return self.checkout / self.spec.task.run.cwd

    @property
    def home(self) -> Literal["own", "links", "kept"]:
        """A script whose inputs no task names may have them in the user's home folder."""
        task = self.spec.task
        if task.scorer.type != "log" or task.inputs or task.isolation_level == "strict":
            return "own"
        return "kept" if self.sandbox.kind == "none" else "links"

    @property
    def budget_is_known(self) -> bool:
        """Return whether the task or an input states the budget of the training."""
        reported = any(report.budget for report in self.inputs.reports.values())
        return reported or self.spec.task.run.budget is not None

    @property
    def is_timed(self) -> bool:
        """Whether a slower machine makes a worse number: not where a program scores the artifacts
        as they are, unless there is a budget."""
        return self.spec.task.scorer.type != "command" or self.budget_is_known

    def environment(self) -> dict[str, str]:
        spec, home = self.spec, self.run.home
        environment = {name: value for name, value in os.environ.items() if name in INHERITED}
        environment |= {
            "HOME": os.path.expanduser("~"),
            "SEED": str(spec.seed),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "AUTOHYPOTHESIS_RUN_DIR": str(self.run.out),
            "AUTOHYPOTHESIS_EXPERIMENT_ID": spec.experiment_id,
            # None hides every GPU: a run on the CPU cannot take one that another run has leased.
            "CUDA_VISIBLE_DEVICES": self.device.uuid or "",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
        if spec.task.scorer.type == "model":
            environment["AUTOHYPOTHESIS_SAVE_WEIGHTS"] = "1"
        if self.device.kind == "cpu":
            environment |= dict.fromkeys(THREAD_VARIABLES, "1")
        environment |= {**self.inputs.environment, **self.command.environment}
        if self.home != "kept":
            environment |= {"HOME": str(home), **compile_cache_variables(home)}
        return self.sandbox.environment({**environment, **spec.task.run.env}, self.temporary)

    def score_command(self, root: Path, training: Mapping[str, str]) -> ScoreCommand | None:
        """Return what scores the run; `training` is the environment of the training."""
        task, run, sandbox = self.spec.task, self.run, self.sandbox
        scorer = scorer_for(task, self.order)
        words = scorer.command(run, root, self.candidate, self.evaluator)
        if words is None:
            return None
        cwd = self.candidate / task.scoring_cwd
        env = scoring_environment(training, run.scoring_home)
        host = scorer.host(self.candidate, self.evaluator)
        if host is None or self.evaluator is None:
            words = sandbox.command(words, sandbox.scoring(self.checkout, run, self.evaluator), cwd)
        else:
            rights = sandbox.host(self.candidate, run, self.evaluator)
            words = (*words, *sandbox.command(host, rights, cwd))
            env["TMPDIR"] = str(run.scoring_home)  # its name outside, and in the sandbox too
        return ScoreCommand(
            command=words,
            cwd=str(cwd),
            env=env,
            timeout_s=task.scorer.timeout_seconds,
            scored="inside" if host is None else "outside",
            metric=task.objective.metric if task.scorer.type == "model" else "",
        )


@dataclass(frozen=True, slots=True)
class LocalExecutor(Executor):
    """Runs experiments of one repository, each in the export of its worker."""

    repository: Repository
    layout: Layout

    def submit(self, spec: RunSpec) -> str:
        """See `Executor.submit`. The worker's export must be free."""
        process = shim.prestart(self.layout.run(spec.experiment_id), spec.experiment_id)
        try:
            return self._submit(spec, process)
        finally:
            shim.dismiss(process)

    def _submit(self, spec: RunSpec, process: Any) -> str:
        """Submit to the shim that was started before."""
        task, root = spec.task, self.repository.root
        export = Export(self.repository, spec.worker_id)
        files = export.checkout(spec.commit, task)
        inputs = locate_inputs(task, files.path, root, os.environ)
        command = training_command(task, root, os.environ)
        sites = site_folders(command.python) if command.python else ()
        hashed = task_hash(task, protected_blobs(task, self.repository.entries(spec.commit)))
        evaluator = export.evaluator(spec.commit, task)
        candidate = self._candidate(spec, files, evaluator)
        before = take_baseline(files, sites)
        with devices.choosing(spec.experiment_id):
            run = self.layout.run(spec.experiment_id)
            setup = self._setup(spec, run, files, inputs, command, evaluator, candidate)
            if setup.sandbox.kind == "none":
                # The scorer completes data of an earlier version, which lacks some of these files.
                is_whole = all(path.exists() for path in inputs.held_out)
                before.watch(inputs.data if task.scorer.type == "model" and is_whole else ())
            try:
                self._write_bundle(setup, before, hashed)
            except BaseException:
                shutil.rmtree(setup.temporary, ignore_errors=True)  # local.json may not name it
                raise
            shim.start(self._launch(setup), process)
            # See it hold its lease or end, so that others may choose.
            name = spec.experiment_id
            devices.await_taken(setup.device, name, ended=lambda: self.poll(name) != "running")
        own_signer()  # read now, while the training starts: the collector needs it
        return name

    def _setup(
        self,
        spec: RunSpec,
        run: RunPaths,
        files: Checkout,
        inputs: Inputs,
        command: TrainingCommand,
        evaluator: Path | None,
        candidate: Path,
    ) -> RunSetup:
        """Choose a device and a sandbox. The caller holds `devices.choosing`."""
        device = devices.first_free(offered(spec.resources, inputs))
        on_gpu = device.kind == "cuda"
        sandbox = TaskSandbox(
            self.repository,
            spec.task,
            sandbox_kind(spec.task, gpus=on_gpu),
            data=inputs.data,
            held_out=inputs.held_out,
            python=command.python,
            linked=tuple(files.links.values()),
            gpus=on_gpu,
        )
        return RunSetup(
            spec=spec,
            run=run,
            files=files,
            device=device,
            inputs=inputs,
            command=command,
            evaluator=evaluator,
            candidate=candidate,
            sandbox=sandbox,
            temporary=Path(tempfile.mkdtemp(prefix="ah-")),
        )

    def _candidate(self, spec: RunSpec, files: Checkout, evaluator: Path | None) -> Path:
        """Return what is scored: a copy of the checkout where the scorer asks a host, else it.

        The copy takes as long as the checkout is large, so nobody waits for a device meanwhile.
        """
        if scorer_for(spec.task).host(files.path, evaluator) is None:
            return files.path
        return Export(self.repository, spec.worker_id).candidate(files)

    def rescore(self, spec: RunSpec, first: RunPaths) -> dict[str, Any]:
        """Have the evaluator score the weights of a run once more; return its exit record.

        Nothing is trained: the shim holds a device for the scorer alone. The worker's export must
        be free.

        Raises:
            LeaseError: no device of that kind is free.
            LaunchError: the checkout cannot be made.
        """
        run = RunPaths(self.layout.export(f"{spec.worker_id}-rescore"))
        remove_folder(run.folder)
        process, temporary = shim.prestart(run, spec.experiment_id), None
        try:
            export = Export(self.repository, spec.worker_id)
            files = export.checkout(spec.commit, spec.task)
            inputs = locate_inputs(spec.task, files.path, self.repository.root, os.environ)
            trained_by = training_command(spec.task, self.repository.root, os.environ)
            nothing = TrainingCommand(NO_OP_COMMAND, trained_by.environment, trained_by.python)
            evaluator = export.evaluator(spec.commit, spec.task)
            candidate = self._candidate(spec, files, evaluator)
            with devices.choosing(spec.experiment_id):
                setup = self._setup(spec, run, files, inputs, nothing, evaluator, candidate)
                setup = replace(setup, order=order_of(read_object(first.exit)))
                temporary = setup.temporary
                for folder in (run.folder, run.out, run.home, run.scoring_home):
                    folder.mkdir(parents=True)
                for source, copy in ((first.config, run.config), (first.weights, run.weights)):
                    shutil.copyfile(source, copy)
                shim.start(self._launch(setup), process)
                devices.await_taken(
                    setup.device, spec.experiment_id, ended=lambda: shim.status(run) != "running"
                )
            while shim.wait(run, SHIM_EXIT_S) == "running":
                end_overdue(run)
            return read_object(run.exit)
        finally:
            shim.dismiss(process)
            for folder in (run.folder, *filter(None, (temporary,))):
                remove_folder(folder)

    def check_device_free(self, resources: Resources, inputs: Inputs) -> None:
        devices.first_free(offered(resources, inputs))

    def poll(self, experiment_id: str) -> RunState:
        """See `Executor.poll`. A shim that is past all its limits is ended first."""
        run = self.layout.run(experiment_id)
        state = shim.status(run)
        return shim.status(run) if state == "running" and end_overdue(run) else state

    def stall(self, experiment_id: str) -> str:
        return shim.stopped_shim(self.layout.run(experiment_id))

    def wait(self, experiment_id: str, timeout: float) -> None:
        run = self.layout.run(experiment_id)
        if shim.read_record(run):
            shim.wait(run, timeout)
        else:
            time.sleep(timeout)

    def cancel(self, experiment_id: str) -> None:
        run = self.layout.run(experiment_id)
        if run.folder.is_dir() and shim.read_record(run) is None:
            shim.claim(run)  # unless a shim was just about to
        shim.cancel(run)

    def collect(self, experiment_id: str) -> Result:
        if self.poll(experiment_id) == "finished":
            shim.wait(self.layout.run(experiment_id), SHIM_EXIT_S)
        return collect(self.repository, self.layout, experiment_id)

    # ── before the shim ───────────────────────────────────────────────────────────────────

    def _write_bundle(self, setup: RunSetup, before: CheckoutBaseline, hashed: str) -> None:
        """Write all that is known about a run before it.

        Its spec comes last: a kill before leaves nothing that could be judged, and the plan is
        taken back; one after it loses nothing.
        """
        spec, run = setup.spec, setup.run
        run.folder.mkdir(parents=True)
        run.out.mkdir()
        run.clock_in_out.touch()
        if spec.task.scorer.type == "model":
            run.weights.symlink_to(run.weights_in_out.relative_to(run.folder))
        if setup.home != "kept":
            run.home.mkdir()
        run.scoring_home.mkdir()
        if setup.home == "links":
            link_home(run)
        local = {
            "checkout": str(setup.checkout),
            "temporary": str(setup.temporary),
            "before": before.model_dump(mode="json"),
            "started_at": time.time(),
            "starter": {"pid": os.getpid(), "start": system.process_start(os.getpid())},
        }
        write_atomic(run.local, to_json(local), durable=False)
        write_atomic(run.diff, spec.diff.encode("utf-8", "surrogateescape"), durable=False)
        bundles.write_config(run, spec.config)
        metadata = self._metadata(setup, hashed, version_of("torch", before.distributions))
        bundles.write_metadata(run, metadata)
        if setup.home != "kept":
            key = metadata.runtime.platform_key
            start_compile_cache(run.home, compile_cache_folder(self.repository.common_dir, key))
        write_json(run.run_spec, spec.model_dump(mode="json"), durable=False)

    def _metadata(self, setup: RunSetup, hashed: str, torch: str) -> Metadata:
        spec, inputs, budget = setup.spec, setup.inputs, setup.inputs.budget(setup.spec.task)
        compared: dict[str, Any] = {
            "data_hash": data_hash_with(inputs.data_hash, setup.files.included),
            "task_hash": hashed,
            "budget_seconds": budget.seconds,
            "clock": budget.clock,
        }
        name, profile = setup.device.name, inputs.profile_hash
        return metadata_of(
            spec,
            setup.device.id,
            gpu_name=name,
            platform_key=platform_key(device_name=name, profile_hash=profile, **compared),
            profile=inputs.profile,
            **compared,
            torch_version=torch,
            sandbox=setup.sandbox.kind,
            isolation=spec.task.isolation_level,
            included=dict(setup.files.included),
            checkout_lacks=lacking(self.repository, spec.task).lines(),
            home=setup.home,
        )

    def _launch(self, setup: RunSetup) -> Launch:
        spec, inputs, run = setup.spec, setup.inputs, setup.run
        budget, environment = inputs.budget(spec.task), setup.environment()
        seconds = budget.seconds if setup.budget_is_known else None
        training = setup.sandbox.training(setup.checkout, run, setup.temporary)
        plans = (self.layout.plan(spec.experiment_id), self.layout.plan_page(spec.experiment_id))
        return Launch(
            experiment_id=spec.experiment_id,
            run_dir=str(run.folder),
            cwd=str(setup.cwd),
            command=setup.sandbox.command(setup.command.words, training, setup.cwd),
            env=environment,
            deadline_seconds=spec.task.run.deadline_seconds
            or deadline(
                inputs.start_allowance_s, seconds, budget.clock, inputs.evaluation_allowance_s
            ),
            budget_seconds=seconds,
            clock=budget.clock,
            clock_required=spec.task.scorer.type == "model",
            lease=devices.lease_of(setup.device),
            device=setup.device,
            score=setup.score_command(self.repository.root, environment),
            contention_kernel=setup.device.kind == "cpu" and setup.is_timed,
            metric=spec.task.objective.metric,
            max_processes=spec.task.run.max_processes,
            labels={
                "worker_id": spec.worker_id,
                "gpu_id": setup.device.id,
                "commit": spec.commit,
                "hypothesis_id": spec.hypothesis_id,
                "title": spec.title,
            },
            repository=str(self.repository.root),
            watched=tuple(map(str, plans)),
        )


def offered(wanted: Resources, inputs: Inputs) -> list[Device]:
    """Return the devices that a training with these inputs may run on.

    Raises:
        LeaseError: there is none of that kind.
    """
    kind: Literal["cpu", "cuda"] = "cuda" if inputs.device == "cuda" else "cpu"
    if not inputs.device:
        kind = wanted.kind or devices.best_kind()
    every = devices.devices(kind)
    allowed = [device for device in every if wanted.device in (None, device.id)]
    if not allowed:
        raise LeaseError(
            f"{wanted.device} is no {kind} device of this machine: "
            f"{', '.join(device.id for device in every)}",
            hint="make the fleet's workers anew: python orchestrator.py init-fleet",
        )
    return allowed
