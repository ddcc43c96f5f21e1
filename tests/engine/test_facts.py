"""What the engine knows of a run by itself."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from autohypothesis.engine.facts import (
    count_parameters,
    long_lines,
    untrue_metrics,
    untrue_score,
    work_outside,
)
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import ClockCheck, ExitRecord, Metadata, Runtime, now

KNOWN = {"depth": 4.0, "training_seconds": 10.0, "num_params_M": 1.5}


def recorded(folder: Path, outside: float, clock: str = "cpu", platform: str = "p") -> RunPaths:
    """A run of ten seconds by its clock, and of some outside of it."""
    run = RunPaths(folder)
    folder.mkdir()
    spent = 10.0 + outside
    record = ExitRecord(
        experiment_id=folder.name, status="exited", exit_code=0, ended_at=now(),
        cpu_seconds=spent, wall_seconds=spent,
        clock=ClockCheck(clock=clock, kernel_s=10.0, verdict="ok"),
    )  # fmt: skip
    run.exit.write_text(record.model_dump_json())
    metadata = Metadata(recorded_at=now(), runtime=Runtime(platform_key=platform))
    run.metadata.write_text(metadata.model_dump_json())
    return run


def outside_of(run: RunPaths, *others: RunPaths) -> str:
    return work_outside(run, ExitRecord.model_validate_json(run.exit.read_bytes()), others)


def test_work_outside_of_the_clock_is_held_against_the_longest_baseline_of_the_platform(
    tmp_path: Path,
) -> None:
    baselines = [recorded(tmp_path / "b1", 1.6), recorded(tmp_path / "b2", 2.0)]
    baselines.append(recorded(tmp_path / "b3", 50.0, platform="another machine"))
    assert not outside_of(recorded(tmp_path / "honest", 3.9), *baselines)
    assert outside_of(recorded(tmp_path / "cheat", 4.1), *baselines) == (
        "4.1 s of cpu time outside of its clock, before it or after it;"
        " the baseline takes 2.0 s, the limit is 4.0 s"
    )
    assert not outside_of(recorded(tmp_path / "first", 60.0)), "nothing is known yet"


def test_wall_time_outside_of_the_clock_has_more_to_spare(tmp_path: Path) -> None:
    baseline = recorded(tmp_path / "b", 20.0, "wall")
    assert not outside_of(recorded(tmp_path / "compiled", 80.0, "wall"), baseline)
    assert outside_of(recorded(tmp_path / "long", 100.0, "wall"), baseline)


@pytest.mark.slow
def test_parameters_are_counted_from_the_headers_of_weights_shared_ones_once(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    shared = torch.zeros(7, 3)
    state = {"a": shared, "b": shared.view(21), "c": torch.zeros(5, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "weights.pt")
    assert count_parameters(tmp_path / "weights.pt") == 26


class Attack:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def archive(path: Path, header: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("weights/data.pkl", header)
        for name, content in files.items():
            out.writestr(f"weights/data/{name}", content)
    return path


def test_nothing_that_weights_name_is_run_to_count_them(tmp_path: Path) -> None:
    made = tmp_path / "made"
    header = pickle.dumps({"a": Attack(made)})
    assert count_parameters(archive(tmp_path / "w", header)) == 0
    assert not made.exists()
    pickle.loads(header)
    assert made.exists(), "the attack is one"


@pytest.mark.parametrize(
    "header",
    [b"", b"no pickle", b"\x80\x02K\x01r\xff\xff\xff\x7f.", b"\x80\x02}Q.", b"(" * 9999 + b"."],
)
def test_damaged_headers_count_nothing_and_cost_nothing(tmp_path: Path, header: bytes) -> None:
    assert not count_parameters(archive(tmp_path / "w", header))


def test_a_file_that_is_no_archive_or_no_file_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "w")
    paths = (tmp_path / "w", tmp_path / "link", tmp_path, tmp_path / "absent")
    assert [count_parameters(path) for path in paths] == [None] * 4


def test_a_printed_metric_that_is_not_the_known_one_is_told_and_rounding_is_not() -> None:
    assert not untrue_metrics({"depth": 4, "training_seconds": 10.1, "num_params_M": 1.499}, KNOWN)
    assert not untrue_metrics({"depth": "four", "mfu_percent": 300.0}, KNOWN)
    told = untrue_metrics({"depth": 5, "training_seconds": 2.0}, KNOWN)
    assert told == ["it printed depth 5, which is 4", "it printed training_seconds 2, which is 10"]


def test_a_printed_score_may_be_rounded_and_computed_less_precisely_and_no_more() -> None:
    assert not untrue_score(1.0004, 1.0, on_gpu=False) and not untrue_score(None, 1.0, on_gpu=True)
    assert not untrue_score(1.004, 1.0, on_gpu=True) and not untrue_score("nan", 1.0, on_gpu=True)
    assert untrue_score(1.004, 1.0, on_gpu=False) and untrue_score(0.9, 1.0, on_gpu=True)


def test_an_added_line_that_spells_out_data_is_told_with_its_place() -> None:
    diff = "--- a/train.py\n+++ b/train.py\n@@ -1,2 +1,3 @@\n a = 1\n-{0}\n+b = 2\n+{1}\n"
    assert long_lines(diff.format("x" * 3000, "y" * 2048)) == [
        "train.py:3 is a line of 2,048 characters: look at it"
    ]
    assert long_lines(diff.format("x" * 3000, "y" * 2047)) == []
