"""Each kind of failure comes from its own evidence, and from no other's."""

from __future__ import annotations

from typing import Any

import pytest

from autohypothesis.engine.failures import classify, device_evidence, is_interruption

TRACEBACK = """step 1 | loss: 3
Traceback (most recent call last):
  File "/repo/train.py", line 41, in <module>
    loss = model(x)
  File "/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1, in _call
    return forward()
{}
"""


def exit_(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "status": "exited",
        "exit_code": 0,
        "signal": None,
        "error": None,
        "wall_seconds": 12.0,
        "device": {"kind": "cpu", "nvml_error": None, "lost": False, "memory_not_back": None},
        "clock": {"verdict": "ok", "kernel_s": 10.0, "budget_seconds": 10.0, "reason": None},
        "contention": {"foreign": []},
        "oom_kills": 0,
        "score": None,
        "metrics": {"training_seconds": 10.0},
    }
    return {**good, **changes}


def signalled(number: int, **changes: Any) -> dict[str, Any]:
    return exit_(status="signalled", exit_code=None, signal=number, **changes)


def crashed(code: int = 1, **changes: Any) -> dict[str, Any]:
    return exit_(exit_code=code, **changes)


FULL = {"no_room": "No space left on device: /r"}
LIMITS = {"file_limit": 4096, "cpu_limit": 60}
FOREIGN = {"foreign": [{"pid": 7, "grown_mb": 900.0}]}


@pytest.mark.parametrize(
    ("end", "log", "metric", "kind", "words"),
    [
        (None, "", None, "infra", "without writing exit.json"),
        (exit_(status="infra", error="disk full"), "", None, "infra", "disk full"),
        (exit_(status="cancelled"), "", None, "cancelled", "stopped"),
        (exit_(device={"lost": True}), "", 1.0, "infra", "lost"),
        (exit_(device={"nvml_error": "GPU is lost"}), "", 1.0, "infra", "GPU is lost"),
        (exit_(contention=FOREIGN), "", 1.0, "contended", "pid 7 grew by 900 MB"),
        (crashed(contention=FOREIGN), "CUDA out of memory\n", None, "contended", "pid 7"),
        (exit_(status="deadline", signal=9), "", None, "timeout", "after 12 s"),
        (crashed(), TRACEBACK.format("torch.OutOfMemoryError: CUDA out of memory. Tried"), None,
         "oom", "CUDA out of memory. Tried"),
        (crashed(), TRACEBACK.format("MemoryError"), None, "oom", "MemoryError"),
        (crashed(), TRACEBACK.format("RuntimeError: [enforce fail] DefaultCPUAllocator: can't"
                                     " allocate memory"), None, "oom", "allocate"),
        (signalled(9, oom_kills=1), "", None, "oom", "kernel"),
        (signalled(9), "", None, "code_error", "SIGKILL: the machine knows no reason"),
        (signalled(15), "", None, "code_error", "SIGTERM"),
        (signalled(11), "", None, "code_error", "SIGSEGV"),
        (crashed(), "step 3\nFAIL: loss is nan at step 3\n", None, "nan", "nan at step 3"),
        (crashed(), TRACEBACK.format("ValueError: heads must divide width"), None,
         "code_error", "/repo/train.py:41: ValueError: heads must divide width"),
        (crashed(), TRACEBACK.format("Boom"), None, "code_error", "train.py:41: Boom"),
        (crashed(), '  File "train.py", line 3\n    x = = 1\nSyntaxError: invalid syntax\n', None,
         "code_error", "train.py:3: SyntaxError: invalid syntax"),
        (crashed(3), "giving up\n\n", None, "code_error", "exit code 3: giving up"),
        (crashed(3), "", None, "code_error", "exit code 3: no output"),
        (crashed(machine=FULL), TRACEBACK.format("OSError: [Errno 28] No space left on device"),
         None, "infra", "No space left"),
        (crashed(machine=FULL), TRACEBACK.format("OSError: [Errno 122] Disk quota exceeded"), None,
         "infra", "see `quota -s`"),
        (crashed(machine=LIMITS), TRACEBACK.format("OSError: [Errno 27] File too large"), None,
         "infra", "`ulimit -f unlimited`"),
        (crashed(), TRACEBACK.format("OSError: [Errno 28] No space left on device"), None,
         "code_error", "No space left"),
        (crashed(machine=LIMITS), TRACEBACK.format("OSError: [Errno 28] No space left on device"),
         None, "code_error", "No space left"),
        (signalled(25, machine=LIMITS), "", None, "infra", "SIGXFSZ: a file grew too large"),
        (signalled(24, machine=LIMITS), "", None, "infra", "SIGXCPU: its CPU time is used up"),
        (signalled(24), "", None, "code_error", "SIGXCPU: the machine knows no reason"),
        (crashed(128 + 25, machine=LIMITS), "", None, "infra", "SIGXFSZ: a file grew too large"),
        (crashed(128 + 9), "", None, "code_error", "SIGKILL"),
        (crashed(128 + 9, oom_kills=1), "", None, "oom", "kernel"),
        (crashed(128 + 11), "", None, "code_error", "SIGSEGV"),
        (exit_(status="infra", error="File too large: /r/run.log"), "", None, "infra",
         "`ulimit -f unlimited`"),
        (crashed(machine={"cuda_error": "cuInit fails with CUDA error 100"}),
         TRACEBACK.format("RuntimeError: No CUDA-capable device is detected"), None,
         "infra", "CUDA-capable"),
        (crashed(), TRACEBACK.format("RuntimeError: No CUDA-capable device is detected"), None,
         "code_error", "CUDA-capable"),
        (exit_(clock={"verdict": "invalid", "reason": "the clock lies"}), "", 1.0, "invalid",
         "the clock lies"),
        (exit_(clock={"verdict": "ok", "kernel_s": 0.01, "budget_seconds": 10.0}), "", 1.0,
         "invalid", "trained for 0.010 s"),
        (exit_(metrics={"training_seconds": 0.0}), "", 1.0, "invalid", "nothing was trained"),
        (exit_(score={"result": {"invalid": "it peeks"}, "error": None}), "", None, "invalid",
         "it peeks"),
        (exit_(), "val_bpb: nan\n", None, "nan", "printed val_bpb: nan"),
        (exit_(), "", float("nan"), "nan", "val_bpb is nan"),
        (exit_(score={"error": "exited 1: no weights"}), "", None, "no_metric", "no weights"),
        (exit_(score={"error": "scoring exited 1: CUDA out of memory"}), "", None, "oom", "memory"),
        (exit_(), "all done\n", None, "no_metric", "no line `val_bpb: <number>`"),
    ],
)  # fmt: skip
def test_failures_are_named_from_evidence(
    end: dict[str, Any] | None, log: str, metric: float | None, kind: str, words: str
) -> None:
    failure = classify(end, log, metric)
    assert failure is not None
    assert (failure.kind, words in failure.detail) == (kind, True), failure


def test_a_good_run_is_no_failure() -> None:
    assert classify(exit_(), "CUDA out of memory, tried again with half\nval_bpb: 1\n", 1.0) is None


def test_device_evidence_is_told_apart_from_the_experiment() -> None:
    assert device_evidence(exit_()) is None
    back = exit_(device={"memory_not_back": {"before_mb": 10.0, "after_mb": 9000.0}})
    assert classify(back, "", 1.0) is None
    assert "9000 MB after" in (device_evidence(back) or "")
    assert "pid 7" in (device_evidence(exit_(contention=FOREIGN)) or "")


def test_a_shim_that_its_run_could_have_killed_does_not_come_back_without_end() -> None:
    kept, open_to_it = classify(None, "", None), classify(None, "", None, confined=False)
    assert kept is not None and open_to_it is not None
    assert (kept.kind, open_to_it.kind) == ("infra", "infra")
    assert [is_interruption(one.detail) for one in (kept, open_to_it)] == [True, False]


def test_a_long_line_is_cut() -> None:
    failure = classify(crashed(), TRACEBACK.format("ValueError: " + "x" * 10_000), None)
    assert failure is not None and len(failure.detail) == 300
