"""`status` with what old orchestrators stumbled over: torn, forged, stale and huge files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from autohypothesis.fleet.live.quarantine import quarantine
from autohypothesis.fleet.overview.overview import Overview, overview
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Proposal, now
from autohypothesis.terminal.fleet import status_page
from tests.conftest import Cli

DAMAGE: dict[str, bytes] = {
    "half written": b'{"worker_id": "cpu0", "state": "trai',
    "huge": b'{"worker_id": "' + b"x" * 5_000_000 + b'"}',
    "no time in it": b'{"worker_id": "cpu0"}',
}


def needs(view: Overview) -> str:
    return "\n".join(need.what for need in view.needs)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_heartbeat_does_not_stop_status(
    fleet: Any, page: Callable[..., str], content: bytes
) -> None:
    fleet.beat("cpu1")
    fleet.layout.heartbeat("cpu0").write_bytes(content)

    view = overview(fleet.layout)

    assert [worker.state for worker in view.workers] == ["damaged", "training"]
    assert needs(view).startswith("damaged: research/live/workers/cpu0.json: ")
    assert len(needs(view)) < 400
    assert "cpu1" in page(status_page(view))


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing without end"])
def test_what_is_no_file_does_not_stop_status(fleet: Any, kind: str) -> None:
    for path in (
        fleet.layout.heartbeat("cpu0"), fleet.layout.role("observer"), fleet.layout.leaderboard,
        fleet.layout.problems, fleet.layout.benched, fleet.layout.live_summary,
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    view = overview(fleet.layout)

    assert "research/live/observer.json" in needs(view)
    assert view.roles[1].state == "damaged"
    assert not view.alive


def test_a_reused_pid_and_one_that_is_none_are_not_alive(fleet: Any) -> None:
    for pid in (None, 0, -1, 2**70):
        fleet.beat("cpu0", pid=pid)
        fleet.beat("cpu1", process_start=None)
        fleet.role("observer", pid=pid)
        assert not overview(fleet.layout).alive
    fleet.beat("cpu0", process_start=fleet.own.start - 100)
    fleet.role("observer", process_start=fleet.own.start + 1)

    view = overview(fleet.layout)

    assert view.workers[0].state == "dead"
    assert not view.alive
    assert f"worker cpu0 (pid {fleet.own.pid}) died during h-nov20-0007-1" in needs(view)
    assert f"the observer (pid {fleet.own.pid}) died" in needs(view)
    assert view.next_command.endswith("up")


def test_a_time_in_the_future_is_named_and_blocks_nobody(fleet: Any, page: Any) -> None:
    ahead = now() + timedelta(days=400)
    fleet.beat("cpu0", updated_at=ahead, since=ahead, started_at=ahead)

    view = overview(fleet.layout)

    assert view.workers[0].alive
    assert view.workers[0].age_s is None
    assert view.workers[0].busy_share is None
    assert needs(view).count("in the future") == 1
    assert "-" not in page(status_page(view)).split("cpu0")[1].split("an idea")[0].replace(
        "h-nov20-0007-1", ""
    )


def test_a_dead_worker_is_shown_dead_whatever_its_state_says(fleet: Any) -> None:
    fleet.beat("cpu0", process_start=1.0, state="stopped")
    fleet.beat("cpu1", process_start=1.0, state="idle")

    view = overview(fleet.layout)

    assert [worker.state for worker in view.workers] == ["stopped", "dead"]
    assert "cpu0" not in needs(view)  # it said goodbye


def test_a_worker_that_the_manifest_does_not_know_is_shown_while_it_lives(fleet: Any) -> None:
    fleet.beat("gpu7")
    fleet.beat("gpu8", process_start=1.0)

    assert [one.worker_id for one in overview(fleet.layout).workers] == ["cpu0", "cpu1", "gpu7"]


def test_no_research_folder_says_how_to_start(foreign: Any, cli: Any) -> None:
    answer = cli("status")

    assert answer.returncode == 0
    assert "no search yet" in answer.stdout and "queue" not in answer.stdout
    assert answer.stdout.rstrip().endswith("next: python orchestrator.py up")
    assert not (foreign / "research").exists()


@pytest.mark.parametrize(
    "content", ['{"tag": "nov20", "work', '{"tag": 7}', '{"tag": "nov20", "workers": 3}', "[]"]
)
def test_a_damaged_manifest_does_not_stop_status(fleet: Any, content: str) -> None:
    fleet.beat("cpu0")
    fleet.board(metric_value=1.4)
    fleet.layout.manifest.write_text(content)

    view = overview(fleet.layout)

    assert "research/fleet/manifest.json" in needs(view)
    assert [need.run for need in view.needs if "mend it, or move it away" in need.what] == [""]
    assert view.tag == "nov20"
    assert view.best is not None
    assert [worker.worker_id for worker in view.workers] == ["cpu0"]


def test_a_worker_that_is_a_path_does_not_leave_its_folder(fleet: Any) -> None:
    fleet.manifest("../../../etc/passwd", "cpu1")

    view = overview(fleet.layout)

    assert [worker.worker_id for worker in view.workers] == ["cpu1"]
    assert "etc/passwd" in needs(view)


@pytest.mark.parametrize(
    "value", [0.0, -1.0, float("nan"), float("inf"), "0", None, True, "x" * 10_000]
)
def test_a_best_that_is_no_measurement_is_no_best(fleet: Any, page: Any, value: object) -> None:
    fleet.board(metric_value=value)

    view = overview(fleet.layout)

    assert view.best is None
    assert "nothing kept yet" in page(status_page(view))


def test_the_best_is_told_against_the_first_kept_baseline_of_its_platform(fleet: Any) -> None:
    baseline = fleet.ran("baseline-nov20", "keep", 1.5)
    fleet.ran("h-nov20-0003", "keep", 1.4)
    sync(fleet.layout)
    best = overview(fleet.layout).best
    assert best is not None
    assert best.baseline == 1.5
    assert best.improvement == pytest.approx(0.1)

    fleet.board(metric_value=1.4, platform_key="another device")
    best = overview(fleet.layout).best
    assert best is not None
    assert best.baseline is None

    path = fleet.layout.run(baseline).result
    write_json(path, {**read_json(path), "metric_value": 9.9})
    sync(fleet.layout)
    view = overview(fleet.layout)
    assert view.best is not None
    assert view.best.baseline is None, "an edited baseline is none to compare with"
    edit = f"damaged: research/runs/{baseline}/result.json: says metric_value 9.9, and 1.5 was"
    assert any(edit in need.what for need in view.needs)


def test_another_tags_leaderboard_and_queue_are_not_shown(fleet: Any) -> None:
    fleet.board(metric_value=1.4)
    board = json.loads(fleet.layout.leaderboard.read_text())
    write_json(fleet.layout.leaderboard, {**board, "tag": "nov20-b"})
    fleet.queue.add(Proposal(title="mine", config_overrides={"RATE": 1}), proposer="search")
    other = fleet.layout.hypothesis("h-nov20-b-0001", "pending")
    write_json(other, {"hypothesis_id": "h-nov20-b-0001", "tag": "nov20-b", "title": "theirs"})

    view = overview(fleet.layout)

    assert view.best is None
    assert view.counts["pending"] == 1
    assert [one.title for one in view.waiting] == ["mine"]


def test_a_title_cannot_forge_a_section(fleet: Any, page: Any) -> None:
    evil = (
        "fine\n\nneeds you\n! run rm -rf\x1b[2J\x1b]0;owned\x07 \u202egnol [bold red]x[/] \x9b31m"
    )
    fleet.beat("cpu0", title=evil, notes=evil, diff_stat=evil)
    fleet.role("observer", last_action=evil, state=evil, problems=[evil])
    fleet.board(metric_value=1.4, description=evil, id=evil, confirmation=evil)
    fleet.queue.add(Proposal(title=evil, config_overrides={"RATE": 1}), proposer=evil)

    for width in (80, 200):
        text = page(status_page(overview(fleet.layout)), width)
        lines = [line.strip() for line in text.splitlines()]
        assert lines.count("needs you") == 1
        assert not any(line.startswith("! run") for line in lines)
        assert not set("\x1b\x07\x9b\u202e") & set(text)
    assert "[bold red]x[/]" in text


def test_what_needs_somebody_is_named(fleet: Any) -> None:
    fleet.role("observer", problems=["proposer command:idea failed: exit status 1"])
    fleet.layout.inbox_refused.mkdir(parents=True)
    (fleet.layout.inbox_refused / "my idea.json").write_text("{")
    (fleet.layout.inbox_refused / "my idea.json.reason").write_text("is not JSON\n")
    quarantine(fleet.layout, "GPU-123", "device lost")
    fleet.layout.problems.parent.mkdir(parents=True)
    write_json(
        fleet.layout.problems,
        {"problems": [{"path": f"research/runs/x{n}", "reason": "torn"} for n in range(50)]},
    )

    said = needs(overview(fleet.layout))

    assert "observer: proposer command:idea failed: exit status 1" in said
    assert "research/inbox/refused/my idea.json: is not JSON" in said
    assert "GPU-123" in said
    assert "device lost" in said
    assert (
        "50 files, research/runs/x0, research/runs/x1, research/runs/x2 and 47 more: torn" in said
    )


def test_one_failure_is_one_entry_whoever_tells_of_it(fleet: Any) -> None:
    line = "command:mine: exit code 1"
    fleet.role("observer", problems=[line])
    fleet.role("loop", problems=[line, f"{line}, three times"])
    assert [need.what for need in overview(fleet.layout).needs] == [f"loop: {line}, three times"]
    fleet.role("loop", state="stopped")
    for name in ("supervisor", "observer", "tool-builder"):
        fleet.role(name, process_start=1.0)
    fleet.beat("cpu0", process_start=1.0)
    died = [need for need in overview(fleet.layout).needs if " died" in need.what]
    assert len(died) == 1 and died[0].run.endswith("up")
    assert died[0].what.count(" died") == 4 and "worker cpu0" in died[0].what


def test_what_a_role_said_before_it_stopped_is_no_longer_wanted(fleet: Any) -> None:
    fleet.role("observer", state="stopped", problems=["proposer x failed; asked again in 4 s"])
    fleet.role("supervisor", state="failed", problems=["the baseline failed: oom"])

    view = overview(fleet.layout)

    assert needs(view) == "supervisor: the baseline failed: oom"
    assert not view.roles[1].alive


def test_one_damaged_file_is_named_once(fleet: Any) -> None:
    path = fleet.layout.hypothesis("h-nov20-0900", "pending")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (problem,) = _problems(fleet)
    fleet.role("observer", problems=[problem])
    fleet.layout.problems.parent.mkdir(parents=True)
    reason = problem.partition(": ")[2]
    said = {"path": str(path.relative_to(fleet.layout.root)), "reason": reason}
    write_json(fleet.layout.problems, {"problems": [said]})

    assert needs(overview(fleet.layout)).count("h-nov20-0900") == 1


def _problems(fleet: Any) -> list[str]:
    """As the observer gives them."""
    fleet.queue.pending()
    return [f"{one.path}: {one.reason}" for one in fleet.queue.problems]


def test_a_damaged_file_of_the_queue_is_named_and_the_others_are_shown(fleet: Any) -> None:
    fleet.queue.add(Proposal(title="whole", config_overrides={"RATE": 1}), proposer="search")
    fleet.layout.hypothesis("h-nov20-0900", "pending").write_bytes(b'{"hypothesis_id": "h-no')

    view = overview(fleet.layout)

    assert [one.title for one in view.waiting] == ["whole"]
    assert "research/hypotheses/pending/h-nov20-0900.json" in needs(view)


# ── it only reads, and little ───────────────────────────────────────────────────────────────

_watched: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        _watched is not None
        and event == "open"
        and isinstance(arguments[0], (str, bytes, os.PathLike))
    ):
        _watched.append(os.fsdecode(arguments[0]))


@contextmanager
def opened() -> Iterator[list[str]]:
    """Every file that is opened meanwhile."""
    global _watched
    if not getattr(sys, "_status_audits", False):
        sys.addaudithook(_audit)
        sys._status_audits = True  # type: ignore[attr-defined]
    _watched = found = []
    try:
        yield found
    finally:
        _watched = None


def test_ten_thousand_done_hypotheses_do_not_slow_status(fleet: Any) -> None:
    """No file that there is one of for each experiment is opened, nor one with a line for each."""
    fleet.ran("baseline-nov20", "keep", 1.5)
    fleet.board(metric_value=1.4)
    for number in range(2, 40):
        fleet.ran(f"h-nov20-{number:04d}", "discard", 1.6)
    fleet.layout.ledger.write_text("{}\n" * 10_000)

    with opened() as paths:
        view = overview(fleet.layout)

    assert view.counts["done"] == 39
    mine = [path for path in paths if path.startswith(str(fleet.layout.root))]
    assert any(path.endswith("manifest.json") for path in mine), "nothing was watched"
    forbidden = (fleet.layout.ledger, fleet.layout.decisions, fleet.layout.fold_index,
                 fleet.layout.aggregate_experiments)  # fmt: skip
    assert not set(map(str, forbidden)) & set(mine)
    assert not [path for path in mine if "/done/" in path or "/plans/" in path]
    assert not [path for path in mine if "/runs/" in path and "baseline" not in path]


def test_status_waits_for_no_writer_and_leaves_no_trace(fleet: Any) -> None:
    fleet.beat("cpu0")
    fleet.role("observer")
    fleet.board(metric_value=1.4)
    fleet.queue.add(Proposal(title="an idea", config_overrides={"RATE": 1}), proposer="search")
    names = ("queue", "sync", "settle", "ids", "registry", "bench", "fleet", "observer")
    with _all_held(fleet.layout, names):
        before = fleet.files()
        view = overview(fleet.layout)
        assert fleet.files() == before
    assert view.alive


@contextmanager
def _all_held(layout: Layout, names: tuple[str, ...]) -> Iterator[None]:
    if not names:
        yield
        return
    with hold(layout, names[0], doing="a test"), _all_held(layout, names[1:]):
        yield


def test_status_as_json_is_one_document(fleet: Any, cli: Any) -> None:
    fleet.beat("cpu0")
    fleet.role("supervisor")
    fleet.board(metric_value=1.4)

    answer = cli("status", "--json")

    document = json.loads(answer.stdout)
    assert answer.returncode == 0, answer.stderr
    assert document["tag"] == "nov20"
    assert document["reference"] == fleet.head
    assert document["best"]["value"] == 1.4
    assert document["alive"] is True
    assert [one["alive"] for one in document["workers"]] == [True, False]
    assert document["workers"][0]["progress"] == 0.62
    assert document["workers"][0]["busy_share"] == pytest.approx(0.75, abs=0.01)
    assert document["generated_at"].endswith("Z")
    assert document["next_command"] == "python orchestrator.py monitor"


@pytest.mark.parametrize("width", [80, 120])
def test_ids_states_and_commands_are_whole_on_a_narrow_screen(
    fleet: Any, page: Any, width: int
) -> None:
    fleet.beat("cpu0", title="a long title " * 20)
    fleet.role("observer", last_action="a long sentence " * 20)
    fleet.role("supervisor")
    fleet.beat("cpu1", process_start=1.0)
    fleet.board(metric_value=1.4, description="long " * 40)

    text = page(status_page(overview(fleet.layout)), width)

    assert all(len(line) <= width for line in text.splitlines())
    for word in ("supervisor", "tool-builder", "not started", "h-nov20-0007-1", "62 %", "dead",
                 "val_bpb 1.400000", "python orchestrator.py monitor"):  # fmt: skip
        assert word in text


def test_on_a_very_narrow_screen_what_is_cut_of_a_process_ends_in_an_ellipsis(
    fleet: Any, page: Any
) -> None:
    fleet.role("supervisor", last_action="a long sentence " * 20)
    fleet.beat("cpu0", title="a long title " * 20)
    view = overview(fleet.layout)
    for width in range(24, 60):
        lines = [line.rstrip() for line in page(status_page(view), width).splitlines()]
        assert all(len(line) <= width for line in lines)
        supervisor, worker = (line for line in lines if line.startswith("●"))
        assert supervisor.endswith((" ago", "…")) and worker.endswith((" 62 %", "…"))


def test_another_search_is_shown_by_its_tag(cli: Cli) -> None:
    assert cli("run-experiment", "--baseline", "--decide", "--tag", "one").returncode == 0
    assert cli("init-fleet", "--tag", "two", "--cpu-workers", "1").returncode == 0
    active, other = (json.loads(cli("status", "--json", *words).stdout)
                     for words in ([], ["--tag", "one"]))  # fmt: skip
    assert (active["tag"], active["best"], active["reference"] is None) == ("two", None, False)
    assert (other["tag"], other["best"]["experiment_id"]) == ("one", "baseline-one-1")
    assert other["counts"]["done"] == 0 and other["outcomes"] == {"keep": 1}


def test_a_fleet_that_was_made_after_a_loop_is_started_next(cli: Cli, program: Cli) -> None:
    assert program("run-loop", "--max", "1", "--tag", "t").returncode == 0
    after = cli("status").stdout
    assert "not started" not in after and "finished" in after
    assert after.rstrip().endswith("next: python orchestrator.py digest")
    assert cli("init-fleet", "--cpu-workers", "1").returncode == 0
    made = cli("status").stdout
    assert "not started" in made
    assert made.rstrip().endswith("next: python orchestrator.py up")
