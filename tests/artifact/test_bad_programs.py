"""Mutators, runners and scorers that misbehave: a typed record in time, the workspace as it was.

Each runs in the sandbox, and on a machine without bubblewrap.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autohypothesis import sandbox
from autohypothesis.engine import candidate, program
from autohypothesis.engine.candidate import TRIES
from autohypothesis.fleet import artifact as loop
from autohypothesis.fleet.artifact import MAX_LOST_ROUNDS
from tests.artifact.conftest import MUTATE, SCORE, Letters, Ran
from tests.conftest import ROOT, run_git, small_disk

EDIT = "open('tasks/letters/text.txt', 'a').write('xx\\n')\n"


def test_a_sandbox_that_is_installed_works_where_everything_is_tested() -> None:
    """Else all of these would be skipped there, and nobody would notice."""
    if os.environ.get("CI") and shutil.which("bwrap"):
        assert sandbox.best_kind() == "bwrap"


# name, what the mutator does, (status, reason), words of the detail
MUTATORS = [
    ("hangs", "import time; time.sleep(600)", ("crash", "timeout"), "longer than 2 s"),
    (
        "ignores what ends it and forks",
        "import os, signal, time\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "time.sleep(600)",
        ("crash", "timeout"), "longer than 2 s",
    ),
    (
        "leaves a daemon that writes on",
        "import os, time\n" + EDIT + "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    [os.close(fd) for fd in (0, 1, 2)]\n"
        "    while True:\n"
        "        open('tasks/letters/text.txt', 'a').write('x')\n"
        "        time.sleep(0.01)",
        ("keep", "improved"), "",
    ),
    (
        "prints 1 GB",
        "import sys\n[sys.stdout.write('y' * (1 << 20)) for _ in range(1024)]",
        ("crash", "code_error"), "printed more than",
    ),
    ("fails", "raise SystemExit('no idea')", ("crash", "code_error"), "no idea"),
    ("changes nothing", "print('nothing')", ("discard", "nothing_new"), "change nothing"),
    (
        "edits the scorer",
        EDIT + "open('tasks/letters/score.py', 'w').write('print({\"score\": 99})')",
        ("crash", "invalid"), "tasks/letters/score.py may not change",
    ),
    (
        "deletes the repository's files",
        "import shutil, os\n[shutil.rmtree(n) if os.path.isdir(n) else os.unlink(n)"
        " for n in os.listdir('.') if n != '.git']",
        ("crash", "invalid"), "may not change",
    ),
    (
        "makes a pipe of an artifact",
        "import os\nos.unlink('tasks/letters/text.txt')\nos.mkfifo('tasks/letters/text.txt')",
        ("crash", "invalid"), "",
    ),
    (
        "makes a repository inside",
        EDIT + "import subprocess\nsubprocess.run(['git', 'init', '-q', 'sub'])",
        ("crash", "invalid"), "",
    ),
    ("says no UTF-8", EDIT + "import os\nos.write(1, b'\\xff\\xfe\\n')", ("keep", "improved"), ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "came", "words"), [one[1:] for one in MUTATORS], ids=[one[0] for one in MUTATORS]
)
@pytest.mark.parametrize(
    "held_by",
    ["bwrap", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("landlock", "none"))],
    indirect=True,
)
def test_a_mutator_that(
    letters: Letters, held_by: str, code: str, came: tuple[str, str], words: str
) -> None:
    letters.write(mutate=code + "\n", timeout=2)
    before, began = letters.state(), time.monotonic()
    ran = letters.once()
    assert time.monotonic() - began < 60
    line = ran.only
    assert (line["status"], line["reason"]) == came, ran.said
    assert words in line["detail"]
    assert line["sandbox"] == held_by
    after = letters.state()
    if came[0] != "keep":
        assert after == before
        assert line["candidate_score"] is None
    if held_by == "bwrap" and came[1] == "invalid":
        assert_goes_on(letters)


def assert_goes_on(letters: Letters) -> None:
    """What a bad program left in its checkout is in nobody's way."""
    letters.write(mutate=EDIT)
    assert letters.once().only["status"] == "keep"


def test_a_mutator_that_deletes_the_users_files_is_undone(letters: Letters, held_by: str) -> None:
    """By their absolute paths: in the sandbox they are read-only, elsewhere they are put back."""
    root = letters.root
    code = (
        "import os\n"
        f"for name in ('README.md', 'tasks/letters/score.py'):\n"
        f"    os.unlink(os.path.join({str(root)!r}, name))\n"
    )
    letters.write(mutate=code)
    (root / "README.md").write_text("edited by its owner, and not committed\n")
    before = letters.state()
    ran = letters.once()
    assert ran.only["status"] == "crash"
    assert letters.state() == before
    assert (root / "README.md").read_text() == "edited by its owner, and not committed\n"
    said = {
        "bwrap": "Read-only file system",
        "landlock": "Permission denied",
        "none": "changed README.md, tasks/letters/score.py of your",
    }
    assert said[held_by] in ran.only["detail"]


def test_an_edit_of_the_user_while_a_mutator_works_stays(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sandbox nobody can tell whose edit it is, so nothing of it is taken back."""
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: "none")
    readme = letters.root / "README.md"
    letters.write(mutate=f"open({str(readme)!r}, 'w').write('an edit')\n" + EDIT)
    ran = letters.once()
    assert readme.read_text() == "an edit"
    assert (ran.only["status"], ran.only["reason"]) == ("crash", "invalid")
    ref = f"refs/fleet/salvage/{ran.only['iteration_id']}"
    assert ref in ran.only["detail"]
    assert run_git(letters.root, "show", f"{ref}:README.md") == "A repository."


def with_preflight(letters: Letters, code: str) -> None:
    """Have the task run check.py before each candidate."""
    (letters.folder / "check.py").write_text(code)
    check = "{device: cpu, preflight: [python, tasks/letters/check.py]}"
    letters.edit_task("{device: cpu}", check, commit=True)


def test_a_preflight_runs_in_the_sandbox_too(letters: Letters) -> None:
    if sandbox.best_kind() == "none":
        pytest.skip("no sandbox works here")
    marker = letters.root.parent / "escaped"
    code = f"try:\n    open({str(marker)!r}, 'w')\nexcept OSError:\n    pass\n"
    with_preflight(letters, code + "print('{\"ok\": true}')\n")
    assert letters.once().only["exit_codes"]["scorer"] == 0
    assert not marker.exists()


BOMB = """
import os, time
for _ in range(60):
    if os.fork() == 0:
        os.setsid()
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""


@pytest.mark.parametrize(
    ("where", "held_by"),
    [("mutator", "bwrap"), ("preflight", "landlock"), ("mutator", "none"), ("preflight", "none")],
    indirect=["held_by"],
)
def test_a_program_that_forks_without_end_is_ended_with_all_of_it(
    letters: Letters, held_by: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A preflight imports the candidate, so it is the first to run what a candidate does."""
    monkeypatch.setattr(program, "MAX_PROCESSES", 20)
    letters.write(mutate=BOMB if where == "mutator" else EDIT)
    if where == "preflight":
        honest = "print('{\"ok\": true}')"
        code = f"exec({BOMB!r} if 'xx' in text else {honest!r})\n"
        with_preflight(letters, "text = open('tasks/letters/text.txt').read()\n" + code)
    began = time.monotonic()
    line = letters.once().only
    assert (line["status"], line["reason"]) == ("crash", "code_error"), line
    assert f"the {where} had" in line["detail"] and "20 are allowed" in line["detail"]
    assert time.monotonic() - began < 60
    assert not [pid for pid in psutil.pids() if _says(pid, "time.sleep(20)")]


def _says(pid: int, words: str) -> bool:
    try:
        return words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_mutator_that_replaces_the_link_to_git_runs_nothing_of_its_own(
    letters: Letters, held_by: str
) -> None:
    evil = letters.root.parent / "evil"
    code = f"import os\nopen('.git', 'w').write('gitdir: {evil}\\n')\n" + EDIT
    evil.mkdir()
    letters.write(mutate=code)
    ran = letters.once()
    assert ran.only["status"] == "crash"
    assert_goes_on(letters)


# name, the scorer, (status, reason), words of the detail; test_scoring.py has the others


LATER = "raise SystemExit(75)"
TOO_LARGE = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    "open('large', 'w').write('x' * 9999)"
)
COULD_NOT = [
    ("asks to be tried later", LATER, "it exited 75 (EX_TEMPFAIL: try again later)"),
    ("writes more than ulimit -f allows", TOO_LARGE, "limit of `ulimit -f`"),
]


@pytest.mark.parametrize(
    ("code", "words"), [one[1:] for one in COULD_NOT], ids=[one[0] for one in COULD_NOT]
)
def test_a_scorer_could_not_judge_when_it(
    letters: Letters, code: str, words: str, no_pause: None
) -> None:
    """Nothing is said about the candidate: no crash, no row, and the same change comes again."""
    letters.write(mutate=EDIT, score=SCORE + f"if 'x' in text:\n    {code}\n")
    before = letters.state()
    ran = letters.once()
    assert ran.code == 1 and "the scorer could not judge: " in ran.said and words in ran.said
    assert f"{MAX_LOST_ROUNDS} rounds in a row told nothing" in ran.said
    assert len(ran.lines) == MAX_LOST_ROUNDS
    assert {(line["status"], line["reason"]) for line in ran.lines} == {("lost", "infra")}
    assert len({line["candidate_hash"] for line in ran.lines}) == 1
    assert letters.state() == before
    assert letters("sync").returncode == 0
    rows = (letters.root / "results.tsv").read_text().splitlines()
    assert [row.split("\t")[3] for row in rows[1:]] == ["keep"]
    board = json.loads((letters.root / "research/aggregate/leaderboard.json").read_text())
    assert board["keep_rate"] is None


@pytest.mark.parametrize(
    ("fails_if", "expected"),
    [("True", ["keep"]), ("'x' in text", ["lost", "lost", "keep"])],
    ids=["the reference", "a change"],
)
def test_what_can_be_judged_the_third_time_is_believed_then(
    letters: Letters, no_pause: None, fails_if: str, expected: list[str]
) -> None:
    tries = letters.root.parent / "tries"
    score = SCORE + (
        f"if {fails_if}:\n    with open({str(tries)!r}, 'a') as tries:\n        tries.write('x')\n"
        "        tries.tell() > 2 or exit(75)\n"
    )
    letters.write(mutate=EDIT, score=score, more="sandbox: none\n")
    ran = letters.once()
    assert (ran.code, [line["status"] for line in ran.lines]) == (0, expected), ran.said
    assert tries.read_text().startswith("xxx")


def test_a_mutator_that_asks_to_be_tried_later_could_make_no_change(
    letters: Letters, no_pause: None
) -> None:
    letters.write(mutate=EDIT + LATER + "\n")
    before = letters.state()
    ran = letters.once()
    assert ran.code == 1 and "(EX_TEMPFAIL: try again later)" in ran.said
    assert "the mutator could not make a change: " in ran.said
    assert {(line["status"], line["reason"]) for line in ran.lines} == {("lost", "infra")}
    assert letters.state() == before


@pytest.mark.parametrize("judges", [True, False])
def test_a_preflight_that_could_not_judge_is_run_again(
    letters: Letters, no_pause: None, judges: bool
) -> None:
    tries = letters.root.parent / "tries"
    letters.write(mutate=EDIT, more="sandbox: none\n")
    with_preflight(
        letters,
        f"with open({str(tries)!r}, 'a') as tries:\n    tries.write('x')\n"
        f"    tries.tell() % {TRIES if judges else 99} and exit(75)\nprint('{{\"ok\": true}}')\n",
    )
    ran = letters.once()
    if judges:
        assert ran.only["status"] == "keep"
        assert tries.read_text() == "x" * TRIES * 2  # the reference, and the change
    else:
        assert ran.code == 1 and f"the preflight could not judge, {TRIES} times" in ran.said
        assert "EX_TEMPFAIL" in ran.said and not ran.lines


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PAUSE_S", 0.0)
    monkeypatch.setattr(candidate, "PAUSE_S", 0.0)


def test_a_baseline_without_a_score_ends_the_loop_and_says_why(letters: Letters) -> None:
    letters.write(score="raise SystemExit('no rubric')")
    ran = letters.once(3)
    assert ran.code == 1 and ran.lines == []
    assert "no letters" in ran.said and "orchestrator.py show" in ran.said


def with_runner(letters: Letters, code: str) -> None:
    """A task whose artifact is a program: each candidate runs `code`."""
    letters.write(mutate=f"open('tasks/letters/text.txt', 'a').write({code + chr(10)!r})\n")
    (letters.folder / "run.py").write_text(
        "from pathlib import Path\nexec(Path('tasks/letters/text.txt').read_text())\n"
    )
    letters.text.write_text("a = 'x'\n")
    letters.edit_task("{device: cpu}", "{command: [python, tasks/letters/run.py], device: cpu}")
    letters.edit_task("mutate.py]\nmut", "mutate.py, run.py]\nmut", commit=True)


LINKED = "import os; os.symlink({victim!r}, os.environ['AUTOHYPOTHESIS_RUN_DIR'] + '/../score.log')"


def test_a_log_is_never_written_through_what_a_training_put_in_its_place(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sandbox: a link, and a pipe that would hold up the shim for ever."""
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: "none")
    victim = letters.root.parent / "victim"
    victim.write_text("mine")
    pipe = "import os; os.mkfifo(os.environ['AUTOHYPOTHESIS_RUN_DIR'] + '/../score.log')"
    for code in (LINKED.format(victim=str(victim)), pipe):
        with_runner(letters, code)
        began = time.monotonic()
        assert letters.once().lines, "an iteration without a record"
        assert time.monotonic() - began < 60
        assert victim.read_text() == "mine"


WITHOUT_PAUSE = (
    "from autohypothesis.fleet import artifact; artifact.PAUSE_S = 0.0; "
    "import orchestrator; orchestrator.main()"
)


def on_small_disk(letters: Letters) -> Ran:
    """`task run` where the repository lies on a memory file system of 24 MB, as its own copy."""
    script = (
        f"cp -a {letters.root}/. {letters.root}.small/ && cd {letters.root}.small && "
        f"{sys.executable} -c '{WITHOUT_PAUSE}' task run tasks/letters; "
        "code=$?; git status --porcelain >&2; exit $code"
    )
    (letters.root.parent / f"{letters.root.name}.small").mkdir()
    done = subprocess.run(
        small_disk(["sh", "-c", script], f"{letters.root}.small", 24 << 20),
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return Ran(done.returncode, lines, done.stderr)


def test_a_mutator_that_fills_the_disk_has_its_record(letters: Letters) -> None:
    if not sandbox.works("bwrap"):
        pytest.skip("bwrap is missing or may not run")
    code = (
        "block = b'x' * (1 << 20)\n"
        "with open('tasks/letters/ballast', 'wb') as file:\n"
        "    while True:\n"
        "        file.write(block)\n"
    )
    letters.write(mutate=code + MUTATE, more="isolation: none\n")
    ran = on_small_disk(letters)
    assert len(ran.lines) == MAX_LOST_ROUNDS, ran.said
    assert {(line["status"], line["reason"]) for line in ran.lines} == {("lost", "infra")}
    assert all("No space left on device" in line["detail"] for line in ran.lines)
    assert " M " not in ran.said and " D " not in ran.said
