"""One device has one holder on the machine, for as long as anything uses it."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autohypothesis.engine import devices
from autohypothesis.engine.devices import Device, Lease, lease_of, lock_folder
from autohypothesis.errors import LeaseError
from tests.conftest import ROOT
from tests.shim.conftest import Start


def test_two_trainings_never_share_a_cpu_slot_and_the_loser_names_the_holder(
    start: Start, tmp_path: Path
) -> None:
    spec = Lease(str(tmp_path / "cpu-0.lock"), "CPU slot 0")
    first = start("steady", "20", lease=spec, repository="/some/repository")
    first.wait_for("pid")
    second = start("quick", lease=spec)
    end = second.wait()
    assert end["status"] == "infra" and "CPU slot 0 is leased by" in end["error"]
    for word in (first.launch.experiment_id, "/some/repository", str(first.handle.pid)):
        assert word in end["error"]
    assert not (second.dir / "run.log").exists()


@pytest.mark.parametrize("is_given", [True, False], ids=["the training", "another child"])
def test_a_lease_outlives_its_holder_in_the_training(tmp_path: Path, is_given: bool) -> None:
    file = Lease(str(tmp_path / "gpu.lock"), "GPU 0")
    held = file.acquire({"experiment_id": "x-1"})
    child = subprocess.Popen(
        ["sleep", "60"], close_fds=is_given, pass_fds=[held] if is_given else []
    )
    devices.release(held)
    again = file.try_acquire({}, wait_s=0 if is_given else 1)
    assert (again is None) == is_given
    child.kill()
    child.wait()
    if again is None:
        again = file.acquire({})
    devices.release(again)


def test_no_finaliser_and_no_other_object_gives_a_lease_up(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu.lock")
    held = Lease(path, "GPU 0").acquire({})
    fd = held
    other = Lease(path, "GPU 0")
    assert other.try_acquire({}, wait_s=0) is None  # opens and closes the file once more
    assert other.holder() is not None
    del other, held
    gc.collect()
    assert Lease(path, "GPU 0").try_acquire({}, wait_s=0) is None
    os.close(fd)
    again = Lease(path, "GPU 0").acquire({})
    devices.release(again)


def test_asking_for_the_holder_never_makes_an_acquirer_fail(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu.lock")
    devices.release(Lease(path, "GPU 0").acquire({}))
    asker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from autohypothesis.engine.devices import Lease\n"
            "end = time.monotonic() + 1\n"
            "while time.monotonic() < end: Lease(sys.argv[1], 'x').holder()",
            path,
        ],
        cwd=ROOT,
    )
    while asker.poll() is None:
        held = Lease(path, "GPU 0").try_acquire({})
        assert held is not None
        devices.release(held)
        time.sleep(0.001)


def test_files_can_be_used_by_every_user_whatever_the_umask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(devices.LOCKS_VARIABLE, str(tmp_path / "locks"))
    before = os.umask(0o077)
    try:
        folder = lock_folder()
        path = lease_of(Device("cuda", "GPU-1234/../x", "GPU")).path
        devices.release(Lease(path, "GPU 0").acquire({}))
    finally:
        os.umask(before)
    assert folder.fallback is None
    assert os.path.dirname(path) == folder.path
    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o1777
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


def test_the_lock_folder_is_the_shared_one_else_the_users_own_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "missing" / "shared"
    monkeypatch.setattr(devices, "SHARED_FOLDER", str(shared))
    monkeypatch.delenv(devices.LOCKS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = lock_folder()
    assert folder.path == str(tmp_path / "autohypothesis-locks")
    assert folder.fallback is not None and "missing/shared" in folder.fallback
    shared.parent.mkdir()
    assert lock_folder() == devices.LockFolder(str(shared))
    (tmp_path / "locks").write_text("")
    monkeypatch.setenv(devices.LOCKS_VARIABLE, str(tmp_path / "locks"))
    with pytest.raises(LeaseError, match=r"locks is no folder"):
        lock_folder()


def test_a_link_is_never_followed_as_a_lock_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "gpu.lock").symlink_to(tmp_path / "target")
    with pytest.raises(LeaseError, match="doctor"):
        Lease(str(tmp_path / "gpu.lock"), "GPU 0").try_acquire({})
    assert (tmp_path / "target").read_text() == "precious"


def test_a_damaged_holder_note_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    file = Lease(str(path), "GPU 0")
    held = file.acquire({"experiment_id": "x-1"})
    path.write_bytes(b"\xff{" * 100)
    assert file.holder() == {}
    with pytest.raises(LeaseError, match="a process that left no name"):
        file.acquire({})
    devices.release(held)


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_another_users_lock_file_in_a_sticky_folder_can_be_leased(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """fs.protected_regular refuses O_CREAT there, even to root."""
    monkeypatch.setenv(devices.LOCKS_VARIABLE, str(tmp_path / "locks"))
    folder = lock_folder()
    path = f"{folder.path}/cpu-0.lock"
    devices.release(Lease(path, "CPU slot 0").acquire({}))
    os.chown(path, 65534, 65534)
    held = Lease(path, "CPU slot 0").acquire({})
    devices.release(held)
