"""check-hardware: the published keys, and a verdict that holds for the profile it names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.roster import devices
from tests.conftest import ROOT, called

TORCH = ROOT / "tests" / "commands" / "stand_in_torch"
PUBLISHED = ["gpu_name", "vram_mb", "cuda_version", "python_ok", "uv_ok", "ready"]
H100 = {"uuid": "GPU-a", "name": "NVIDIA H100 80GB HBM3", "memory_mb": 81_559}

Answer = tuple[int, dict[str, Any], str]
Machine = Callable[..., Answer]


@pytest.fixture
def machine(machine: Callable[..., None], tmp_path: Path, own_locks: Path) -> Machine:
    """`check-hardware` where NVML shows `gpus` (None: no driver), and torch sees `torch`."""

    def look(gpus: list[dict[str, Any]] | None, torch: object, **env: str) -> Answer:
        machine(**({"driver": False} if gpus is None else {"devices": gpus}))
        answer = called(
            "check-hardware",
            cwd=tmp_path,
            PYTHONPATH=f"{TORCH}:{os.environ.get('PYTHONPATH', '')}",
            STAND_IN_TORCH=torch if isinstance(torch, str) else json.dumps(torch),
            **env,
        )
        return answer.returncode, json.loads(answer.stdout), answer.stderr

    return look


def test_without_a_gpu_the_cpu_profile_is_ready(machine: Machine) -> None:
    code, said, summary = machine(None, {})
    assert list(said)[: len(PUBLISHED)] == PUBLISHED
    assert (said["gpu_name"], said["vram_mb"], said["cuda_version"]) == (None, None, None)
    assert {said[name] for name in ("python_ok", "ready", "torch_ok")} == {1}
    assert said["uv_ok"] in (0, 1) and type(said["ready"]) is int
    assert (said["profile"], said["gpu_ready"], code) == ("cpu", 0, 0)
    assert said["cpu_lanes"] >= 1 and said["memory_mb"] > 100
    assert "profile cpu: torch 2.12.0 is built without CUDA" in summary
    assert "Driver Not Loaded" in summary


@pytest.mark.parametrize(
    ("name", "gb", "major", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", 85, 9, "h100"),
        ("NVIDIA A100-SXM4-40GB", 42, 8, "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", 25, 8, "rtx4090"),
        ("NVIDIA GeForce RTX 3060", 12, 8, "small-gpu"),
        ("Quadro RTX 8000", 48, 7, "small-gpu"),
    ],
)
def test_a_gpu_is_told_with_its_profile(
    machine: Machine, name: str, gb: int, major: int, profile: str
) -> None:
    torch = {"cuda": "12.8", "gpu": name, "gb": gb, "major": major}
    code, said, summary = machine([{**H100, "name": name, "memory_mb": 12_345}], torch)
    assert (said["gpu_name"], said["vram_mb"], said["cuda_version"]) == (name, 12_345, "12.4")
    assert (said["profile"], said["ready"], said["gpu_ready"], code) == (profile, 1, 1, 0)
    assert f"profile {profile}: {name} has {gb} GB" in summary


def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(machine: Machine) -> None:
    code, said, summary = machine([H100], {"cuda": None})
    assert (said["gpu_name"], said["profile"]) == (H100["name"], "cpu")
    assert (said["ready"], said["gpu_ready"], code) == (1, 0, 0)
    assert "is left unused" in summary and "TORCH_INDEX" in summary


def test_a_profile_for_a_gpu_that_nvml_does_not_list_is_not_ready(machine: Machine) -> None:
    torch = {"cuda": "12.8", "gpu": "NVIDIA H100", "gb": 85, "major": 9}
    code, said, summary = machine(None, torch)
    assert (said["profile"], said["ready"], said["gpu_ready"], code) == ("h100", 0, 0, 1)
    assert "missing: profile: auto is h100" in summary and "not ready" in summary


def test_a_hidden_gpu_is_not_the_one_that_is_named(machine: Machine) -> None:
    code, said, _ = machine([H100], {"cuda": "12.8"}, CUDA_VISIBLE_DEVICES="")
    assert said["gpu_name"] is None and [one["visible"] for one in said["gpus"]] == [0]
    assert (said["profile"], said["ready"], code) == ("cpu", 1, 0)
    second = {**H100, "uuid": "GPU-b", "name": "NVIDIA L40S"}
    _, said, _ = machine([H100, second], {"cuda": "12.8"}, CUDA_VISIBLE_DEVICES="1")
    assert said["gpu_name"] == "NVIDIA L40S"


def test_a_gpu_that_fell_off_the_bus_hides_no_other(machine: Machine) -> None:
    lost = {**H100, "uuid": "GPU-c", "lost": True}
    _, said, _ = machine([lost, H100], {"cuda": "12.8"})
    assert said["gpu_name"] == H100["name"]
    assert [one["problem"] for one in said["gpus"]] == ["GPU is lost", None]


def test_mig_devices_are_listed_with_their_names_and_memory(machine: Machine) -> None:
    divided = [{**H100, "mig": [{}, {"used_mb": 80}]}, {**H100, "uuid": "GPU-d", "mig": []}]
    _, said, summary = machine(divided, {"cuda": "12.8", "gpu": "x", "gb": 10, "major": 9})
    assert [(one["index"], one.get("mig")) for one in said["gpus"]] == [(0, 0), (0, 1), (1, None)]
    assert said["gpu_name"].endswith("MIG 1g.10gb") and said["vram_mb"] == 9_856
    assert "gpu 1: is in MIG mode and has no MIG device" in summary


def test_a_torch_that_cannot_be_imported_makes_nothing_ready(machine: Machine) -> None:
    code, said, summary = machine(None, "broken")
    assert (said["ready"], said["profile"], code) == (0, None, 1)
    assert "libcudart.so.12" in said["profile_reason"] and "libcudart.so.12" in summary


def test_rocm_is_said_to_have_no_profile(machine: Machine) -> None:
    _, said, summary = machine(None, {"hip": "6.2", "gpu": "AMD", "gb": 80, "major": 9})
    assert said["profile"] == "cpu" and "ROCm" in summary


def test_the_versions_that_are_checked_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    python = re.search(r'requires-python = ">=(\d+)\.(\d+)"', text)
    torch = re.search(r'"torch>=(\d+)\.(\d+),<=(\d+)\.(\d+)', text)
    assert python and torch
    assert tuple(map(int, python.groups())) == devices.PYTHON_FROM
    numbers = tuple(map(int, torch.groups()))
    assert (numbers[:2], numbers[2:]) == (devices.TORCH_FROM, devices.TORCH_TO)


@pytest.mark.parametrize(
    ("version", "said"),
    [("2.9.0", ""), ("2.13.1+cu128", ""), ("2.8.1", "2.8.1"), ("2.14.0", "2.14.0"), ("x", "x")],
)
def test_a_torch_out_of_range_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str, said: str
) -> None:
    monkeypatch.setattr(devices.metadata, "version", lambda _: version)
    problem = devices.torch_problem()
    assert problem.startswith(said) and bool(problem) == bool(said)
