"""What the engine knows of a run by itself."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from autohypothesis.engine.facts import count_parameters, long_lines, untrue_metrics

KNOWN = {"depth": 4.0, "training_seconds": 10.0, "num_params_M": 1.5}


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


def test_an_added_line_that_spells_out_data_is_told_with_its_place() -> None:
    diff = "--- a/train.py\n+++ b/train.py\n@@ -1,2 +1,3 @@\n a = 1\n-{0}\n+b = 2\n+{1}\n"
    assert long_lines(diff.format("x" * 3000, "y" * 2048)) == [
        "train.py:3 is a line of 2,048 characters: look at it"
    ]
    assert long_lines(diff.format("x" * 3000, "y" * 2047)) == []
