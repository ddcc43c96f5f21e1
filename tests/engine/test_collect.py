"""What an ended run is judged to be: by evidence of its own, never by what replaced it."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.engine import collect as collecting
from autohypothesis.engine import runner, shim
from autohypothesis.engine.collect import collect, judge
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment, RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.scoring import CommandScorer, ModelScorer
from autohypothesis.engine.shim import SCORING_TIMED_OUT as TIMED_OUT
from autohypothesis.engine.task import Parse, ScorerConfig, Task
from autohypothesis.engine.workspace import CheckoutBaseline, Export
from autohypothesis.errors import AutohypothesisError
from autohypothesis.records import git_export
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.schema import ExitRecord, Result, now
from tests.conftest import ROOT


def ended(project: Project) -> RunSpec:
    """A run that has ended and that nobody has collected."""
    executor = LocalExecutor(project.repository, project.layout)
    with runner.free_worker(project) as worker:
        spec = runner.plan(project, Experiment(Change()), worker)
        experiment_id = executor.submit(spec)
        runner.follow(project, executor, experiment_id)
        shim.wait(project.layout.run(spec.experiment_id), 10)
    return spec


def collected(project: Project, spec: RunSpec) -> Result:
    return collect(project.repository, project.layout, spec.experiment_id)


def judged(project: Project, spec: RunSpec, **values: Any) -> Result:
    """The result that a run would have if its exit.json said this."""
    run = project.layout.run(spec.experiment_id)
    content = run.exit.read_bytes()
    write_json(run.exit, {**read_json(run.exit), **values})
    try:
        return judge(project.repository, spec, run, read_json(run.local), [], [])
    finally:
        run.exit.write_bytes(content)


@pytest.mark.parametrize("lost", ["folder", "link", "commit", "half"])
def test_a_run_whose_checkout_is_gone_is_infrastructure_not_invalid(
    project: Project, lost: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ended(project)
    export = Export(project.repository, spec.worker_id)
    if lost == "folder":
        shutil.rmtree(export.path)
    elif lost == "link":
        export.path.rename(tmp_path / "elsewhere")
        export.path.symlink_to(tmp_path / "elsewhere")
    else:
        head = project.repository.head()
        tree = project.repository.tree_with(head, {"train.py": b"OTHER = 1\n"})
        if lost == "half":
            monkeypatch.setattr(git_export, "fill", lambda *_: 1 / 0)
        with suppress(ZeroDivisionError):
            export.checkout(project.repository.commit_tree(tree, [head], "other\n"), project.task)
    result = collected(project, spec)
    assert result.failure_kind == "infra", result.failure_detail
    assert "its checkout is gone" in result.failure_detail
    assert result.metric_value is None


def test_a_file_that_the_training_changed_is_still_invalid(project: Project) -> None:
    spec = ended(project)
    (project.layout.export(spec.worker_id) / "data.txt").write_text("other\n")
    assert collected(project, spec).failure_kind == "invalid"


def test_a_decided_run_whose_collector_was_killed_at_its_end_is_not_collected_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ended(project)
    with monkeypatch.context() as killed:
        killed.setattr(collecting, "_clean_up", lambda run, local: None)
        result = collected(project, spec)
    (decision,) = settle(project, [spec.experiment_id], decided_by="test").decisions_or_raise()
    again = collected(project, spec)
    assert (again.recorded_at, again.decision_id) == (result.recorded_at, decision.decision_id)


GPU = {"kind": "cuda", "uuid": "GPU-aaa", "name": "H"}


def test_the_memory_that_was_printed_is_recorded_and_the_measured_one_beside_it(
    project: Project,
) -> None:
    spec = ended(project)

    def memory(**values: Any) -> list[float]:
        metrics = judged(project, spec, peak_rss_mb=321.0, **values).metrics.model_dump()
        return [metrics[name] for name in ("peak_vram_mb", "measured_peak_mb")]

    assert memory() == [12.5, 321.0]
    assert memory(peak_vram_mb=900.0, device=GPU) == [12.5, 900.0]
    assert memory(metrics={"val_bpb": 1.0}) == [321.0, 321.0], "nothing was printed"


def test_a_training_on_another_gpu_than_the_leased_one_is_invalid(project: Project) -> None:
    spec = ended(project)
    metrics = read_json(project.layout.run(spec.experiment_id).exit)["metrics"]
    for uuid, kind in (("GPU-bbb", "invalid"), ("GPU-AAA", None), ("cpu", "invalid")):
        result = judged(project, spec, metrics={**metrics, "device_uuid": uuid}, device=GPU)
        assert result.failure_kind == kind, result.failure_detail
        assert kind is None or (
            "GPU-aaa" in result.failure_detail and uuid in result.failure_detail
        )
    assert judged(project, spec, device=GPU).failure_kind is None, "it says nothing of its device"
    part = {**GPU, "uuid": "MIG-ccc", "parent": "GPU-aaa"}
    older = {**GPU, "uuid": "MIG-GPU-aaa/7/0"}
    for uuid, device, kind in (
        ("GPU-ccc", part, None), ("GPU-aaa", part, None), ("GPU-ddd", part, "invalid"),
        ("GPU-aaa", older, None), ("GPU-ccc", older, "invalid"),
    ):  # fmt: skip
        result = judged(project, spec, metrics={**metrics, "device_uuid": uuid}, device=device)
        assert result.failure_kind == kind, (uuid, device)


def test_a_repository_of_many_files_can_be_collected_and_its_bundle_stays_small(
    project: Project,
) -> None:
    spec = ended(project)
    assert collecting.LOCAL_LIMIT >= 256 << 20
    path = project.layout.run(spec.experiment_id).local
    local = read_json(path)
    # As large as forty thousand tracked files make it; whitespace stands for them.
    path.write_text(json.dumps(local) + " " * (6 << 20))
    assert collected(project, spec).status == "completed"
    assert path.stat().st_size < 2_000
    left = read_json(path)
    assert left["checkout"] == local["checkout"]
    assert "before" not in left


# ── whose fault a missing score is ──────────────────────────────────────────────────────────

TASK = Task.model_validate(
    {"id": "m", "artifacts": ["train.py"], "scorer": {"type": "model", "evaluator": "prepare.py"}}
)


def scored(folder: Path, score: dict[str, Any] | None, log: str = "") -> str | None:
    run = RunPaths(folder)
    run.score_log.write_text(log)
    record = ExitRecord(
        experiment_id="x-1", status="exited", exit_code=0, ended_at=now(), score=score
    )
    return ModelScorer(TASK).score(run, record, None).kind


OUTSIDE = {"scored": "outside"}


def failed(error: str, result: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"exit_code": 1, "seconds": 1.0, "result": result, "error": error}


@pytest.mark.parametrize(
    ("score", "log", "kind"),
    [
        (failed("scoring exited 1: ImportError: no torch"), "", "infra"),
        (failed("scoring took longer than 900 s"), "", "infra"),
        (failed("scoring was ended (signalled, signal 9)"), "", "infra"),
        (failed("scoring exited 1: OSError: [Errno 28] No space left on device"), "", "infra"),
        (failed("scoring exited 1: x"), "torch.OutOfMemoryError: CUDA out of memory.", "oom"),
        (None, "", "infra"),
        (failed("e", {"error": "CUDA out of memory", "kind": "build_model"}),
         '{"error": "CUDA out of memory", "kind": "build_model"}', "oom"),
        (failed("e", {"error": "GPU is lost", "kind": "build_model"}),
         '{"error": "GPU is lost", "kind": "build_model"}', "code_error"),
        (failed("e", {"error": "no such layer", "kind": "build_model"}), "", "code_error"),
        (failed("e", {"error": "it looks ahead", "kind": "peeking"}), "", "invalid"),
        (failed("e", {"error": "not a number", "kind": "not_finite"}), "", "nan"),
        ({"exit_code": 0, "result": None, "error": "scoring printed no JSON object"}, "",
         "code_error"),
        (OUTSIDE | failed("e", {"error": "No space left on device", "kind": "host"}), "",
         "code_error"),
        (OUTSIDE | failed("e", {"error": "CUDA out of memory", "kind": "shape"}),
         "CUDA out of memory", "oom"),
        (OUTSIDE | failed("e", {"error": "takes longer", "kind": "timeout"}), "", "timeout"),
        (OUTSIDE | failed("scoring exited 1: prepare.py: the host does not start"), "", "infra"),
    ],
)  # fmt: skip
def test_a_fault_of_the_evaluator_is_not_charged_to_the_candidate(
    tmp_path: Path, score: dict[str, Any] | None, log: str, kind: str
) -> None:
    assert scored(tmp_path, score, log) == kind


def test_an_evaluator_is_run_outside_only_if_it_can_ask_a_host(tmp_path: Path) -> None:
    run, checkout, evaluator = RunPaths(tmp_path), tmp_path / "checkout", tmp_path / "prepare.py"
    scorer = ModelScorer(TASK)
    evaluator.write_text('parser.add_argument("--locate")\n')
    words = scorer.command(run, tmp_path, checkout, evaluator)
    assert scorer.host(checkout, evaluator) is None and words[-2] == "--train"
    shutil.copy(ROOT / "prepare.py", evaluator)
    words = scorer.command(run, tmp_path, checkout, evaluator)
    assert words[-1] == "--host" and words[1] == "-I"
    host = scorer.host(checkout, evaluator)
    assert (
        host is not None and host[-1] == str(checkout / "train.py") and str(run.folder) not in host
    )


# ── what a scoring program says ─────────────────────────────────────────────────────────────

ENDED = {"status": "exited", "exit_code": 0}


@pytest.mark.parametrize(
    ("printed", "answer", "value", "kind", "problem"),
    [
        ('{"score": 2, "metrics": {"a": 1}}', ENDED, 2.0, None, ""),
        ('{"score": NaN}', ENDED, None, "no_metric", "no finite val_bpb: nan"),
        ('{"score": "good"}', ENDED, None, "no_metric", "no finite val_bpb: 'good'"),
        ('{"score": 1e999}', ENDED, None, "no_metric", "no finite val_bpb: inf"),
        ('{"points": 1}', ENDED, None, "no_metric", "no finite val_bpb: None"),
        ('{"score": 1}\n{"score": 1}', ENDED, None, "invalid", "2 scores; one run has one"),
        ("", {**ENDED, "error": "it printed no JSON"}, None, "no_metric", "printed no JSON"),
        ("", {"status": "exited", "exit_code": 3, "error": "it exited 3"}, None, "no_metric",
         "the scorer failed: it exited 3"),
        ("", {}, None, "no_metric", "it did not run"),
        ("", {"status": "timeout", "error": f"{TIMED_OUT} 1 s"}, None, "timeout", TIMED_OUT),
        ("", {"status": "processes", "error": "600 processes"}, None, "code_error", "600"),
        ("", {"status": "exited", "exit_code": 75}, None, "infra", "EX_TEMPFAIL"),
        ("", {"status": "signalled", "signal": 9}, None, "infra", "it was killed with SIGKILL"),
        ("torch.OutOfMemoryError: CUDA out of memory.", {"status": "exited", "exit_code": 1},
         None, "oom", "failed"),
        ("OSError: [Errno 28] No space left on device", {"status": "exited", "exit_code": 1},
         None, "infra", "the disk is full"),
        ("", {"status": "infra", "error": "it could not be watched"}, None, "infra", "be watched"),
    ],
)  # fmt: skip
def test_the_answer_of_a_scoring_program_is_a_number_or_a_kind_of_failure(
    tmp_path: Path, task: Task, printed: str, answer: dict[str, object], value: float | None,
    kind: str | None, problem: str,
) -> None:  # fmt: skip
    run = Layout(tmp_path).run("h-1")
    run.folder.mkdir(parents=True)
    run.score_log.write_text(printed)
    score = CommandScorer(task).score(run, record(answer), None)
    assert (score.value, score.kind) == (value, kind), score.problem
    assert problem in score.problem
    assert score.attested == (value is not None)


def test_a_number_is_read_by_its_pattern(tmp_path: Path, task: Task) -> None:
    parse = Parse(format="regex", pattern=r"^acc=(?:(?P<score>[\d.]+)|x)$")
    scorer = ScorerConfig(type="command", command=("a",), parse=parse)
    run = Layout(tmp_path).run("h-1")
    run.folder.mkdir(parents=True)
    run.score_log.write_text("begin\nacc=0.5\nend\n")
    answer = {**ENDED, "error": "it printed no JSON"}
    score = CommandScorer(task.model_copy(update={"scorer": scorer})).score(
        run, record(answer), None
    )
    assert (score.value, score.attested) == (0.5, True)


def record(answer: dict[str, object]) -> ExitRecord:
    document = {"experiment_id": "h-1", "status": "exited", "score": answer}
    return ExitRecord.model_validate({**document, "started_at": now(), "ended_at": now()})


# ── after a kill: the worktree of a run that nobody has judged yet is nobody else's ─────────


def begun(project: Project) -> RunPaths:
    """What is there before a shim starts."""
    spec = RunSpec(
        experiment_id="h-t-0001-1", task=project.task, commit=project.reference(), seed=1, tag="t",
        worker_id="solo-0",
    )  # fmt: skip
    run = project.layout.run(spec.experiment_id)
    before = CheckoutBaseline(commit=spec.commit, files={}, distributions={}, site_folders=[])
    write_json(run.local, {"checkout": "/a", "before": before.model_dump(mode="json")})
    write_json(run.run_spec, spec)
    return run


@pytest.mark.parametrize("damage", ["torn", "gone", "stranger"])
def test_a_run_that_can_never_be_collected_keeps_no_worktree(project: Project, damage: str) -> None:
    run = begun(project)
    if damage == "torn":
        run.local.write_bytes(run.local.read_bytes()[:40])
    elif damage == "gone":
        run.local.unlink()
    else:
        write_json(run.local, {"checkout": "/a", "before": "yesterday"})
    assert collecting.busy_workers(project.layout) == set()
    own = {"pid": os.getpid(), "start": system.process_start(os.getpid()), "hostname": "here",
           "host": system.host_id(), "boot": system.boot_id(), "experiment_id": "x"}  # fmt: skip
    write_json(run.shim, own)
    assert collecting.busy_workers(project.layout) == {"solo-0"}, "its shim lives"
    write_json(run.shim, {**own, "host": "another"})
    assert collecting.busy_workers(project.layout) == {"solo-0"}, "nobody here can tell"


@pytest.mark.parametrize("state", ["absent", "dead", "finished"])
def test_an_uncollected_run_keeps_its_worktree_whatever_became_of_its_shim(
    project: Project, state: str
) -> None:
    run = begun(project)
    if state != "absent":
        write_json(run.shim, {"pid": 0})
    if state == "finished":
        write_json(run.exit, {"status": "exited"})
    assert collecting.busy_workers(project.layout) == {"solo-0"}
    with runner.free_worker(project) as worker:
        assert worker == "solo-1"
    write_json(run.result, {"status": "failed"})
    with runner.free_worker(project) as worker:
        assert worker == "solo-0"


def test_a_run_that_cannot_be_collected_does_not_lose_its_evidence_to_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AutohypothesisError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(runner.LocalExecutor, "collect", refuse)
        patch.setattr(collecting, "collect", refuse)
        with pytest.raises(AutohypothesisError, match="not now"):
            runner.run(project, Experiment(Change()))
        patch.setattr(runner.LocalExecutor, "collect", lambda *_: None)
        second = Experiment(Change(overrides={"RATE": 0.2}))
        with pytest.raises(AutohypothesisError, match="not now"):
            patch.setattr(runner.LocalExecutor, "collect", refuse)
            runner.run(project, second)
    assert collecting.busy_workers(project.layout) == {"solo-0", "solo-1"}
    collected = collecting.collect_ended(project.repository, project.layout)
    assert len(collected) == 2
    for experiment_id in collected:
        assert '"completed"' in project.layout.run(experiment_id).result.read_text()
