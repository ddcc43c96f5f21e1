"""What a scoring program says, and the failure that it stands for when it says no number."""

from __future__ import annotations

from pathlib import Path

import pytest

from autohypothesis.engine.scoring import TIMED_OUT, CommandScorer
from autohypothesis.engine.task import Parse, ScorerConfig, Task
from autohypothesis.records.layout import Layout
from autohypothesis.schema import ExitRecord, now

ENDED = {"status": "exited", "exit_code": 0}


@pytest.mark.parametrize(
    ("printed", "answer", "value", "kind", "problem"),
    [
        ('{"score": 2, "metrics": {"a": 1}}', ENDED, 2.0, None, ""),
        ('{"score": NaN}', ENDED, None, "no_metric", "no finite val_bpb: nan"),
        ('{"score": "good"}', ENDED, None, "no_metric", "no finite val_bpb: 'good'"),
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
