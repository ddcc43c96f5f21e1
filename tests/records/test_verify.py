"""Each forgery, made by hand on a small search that was run, is named by `verify`, in one line."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.commands import fleet as fleet_commands
from autohypothesis.engine import attestation, collect, evidence, verify
from autohypothesis.engine.decide import settle
from autohypothesis.engine.project import Project
from autohypothesis.records import chain as chain_module
from autohypothesis.records import jsonl
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.chain import ANCHOR, DecisionChain, Link, read_links
from autohypothesis.records.files import read_json, write_atomic, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.signing import (
    keys_folder,
    pre_authentication_encoding,
    trusted_keys,
)
from tests.conftest import Answer, called, forked, run_git

SCRIPT = """import os
RATE = 0.1
with open(os.environ["AUTOHYPOTHESIS_RUN_DIR"] + "/weights.pt", "w") as file:
    file.write(f"weights of {RATE}")
print("one line of a log that is longer than what a snapshot keeps")
print(f"val_bpb: {1 + (RATE - 0.3) ** 2:.6f}")
"""
KEEP, WORSE = "h-t-0001-1", "h-t-0002-1"


class Searched:
    """A search with a baseline, a keep and a discard."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        self.keep, self.worse = self.layout.run(KEEP), self.layout.run(WORSE)

    def __call__(self, *words: str, **env: str) -> Answer:
        return called(*words, cwd=self.root, **env)

    def findings(self, *words: str) -> list[str]:
        answer = self("verify", *(words or ("--all",)))
        *lines, summary = answer.stdout.splitlines()
        assert answer.returncode == bool(lines), answer
        assert summary.endswith("as it was signed") is not bool(lines), answer
        return lines

    def lines(self) -> list[str]:
        return self.layout.decisions.read_text().splitlines(keepends=True)

    def edit(self, path: Path, **values: object) -> None:
        write_json(path, {**read_json(path), **values})


def begun(root: Path) -> Path:
    root.mkdir()
    (root / "train.py").write_text(SCRIPT)
    run_git(root, "init", "-q", "-b", "main")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "start")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = begun(tmp_path_factory.mktemp("searched") / "a search")
    locks = {"AUTOHYPOTHESIS_LOCKS": str(root.parent / "locks")}
    words = ["run-experiment", "--decide"]
    for more in (["--tag", "t"], ["--set", "RATE=0.2"], ["--set", "RATE=0.9"]):
        answer = called(*words, *more, cwd=root, **locks)
        assert answer.returncode == 0, answer
    return root


@pytest.fixture
def searched(
    made: Path, tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch
) -> Searched:
    monkeypatch.setattr(evidence, "ENOUGH", 1_000_000)  # no run is voided by other tests' load
    root = tmp_path / made.name
    shutil.copytree(made, root, symlinks=True)
    found = Searched(root)
    assert found.findings() == []
    return found


def test_what_was_run_and_decided_is_as_it_was_signed(searched: Searched) -> None:
    answer = searched("verify", "--all", "--json")
    found = json.loads(answer.stdout)
    assert (found["signed"], found["unattested"], found["decisions"]) == (3, [], 3)
    statement = json.loads(
        base64.b64decode(json.loads(searched.keep.attestation.read_bytes())["payload"])
    )
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    names = {each["name"] for each in statement["subject"]}
    assert {"exit.json", "run.log", "weights.pt", "config.json", "metadata.json"} <= names
    assert statement["predicate"]["result"]["metric_value"] == pytest.approx(1.01)


def test_the_bytes_under_a_signature_are_those_of_the_specification() -> None:
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_key_is_made_once_and_for_its_owner_only(searched: Searched) -> None:
    assert (keys_folder() / "fleet.pem").stat().st_mode & 0o777 == 0o600
    assert keys_folder().stat().st_mode & 0o777 == 0o700
    text = (keys_folder() / "fleet.pem").read_text().splitlines()[1]
    kept = (path for path in searched.root.rglob("*") if path.is_file())
    assert not any(text.encode() in path.read_bytes() for path in kept)


# ── forgeries ───────────────────────────────────────────────────────────────────────────────


def edited_result(searched: Searched) -> None:
    result = read_json(searched.worse.result)
    result["metric_value"] = result["metrics"]["val_bpb"] = 0.5
    write_json(searched.worse.result, result)


def edited_value_in_a_decision(searched: Searched) -> None:
    text = searched.layout.decisions.read_text()
    searched.layout.decisions.write_text(text.replace('"metric_value":1.36', '"metric_value":0.5'))


def edited_decision(searched: Searched) -> None:
    *before, last = searched.lines()
    changed = last.replace('"decision_status":"discard"', '"decision_status":"keep"')
    searched.layout.decisions.write_text("".join((*before, changed)))


def appended_decision(searched: Searched) -> None:
    last = json.loads(searched.lines()[-1])
    for name in ("place", "previous", "signed_by", "signature"):
        del last[name]
    changed = {**last, "decision_id": "d-000009-x", "decision_status": "keep"}
    jsonl.append(searched.layout.decisions, changed)


def appended_link(searched: Searched) -> None:
    """By a tool that chains lines as we do, and has no key."""
    other = DecisionChain(Repository(searched.root), searched.layout)
    other.signer = None
    last = read_decisions(searched.layout)[0][-1]
    other.append(last.model_copy(update={"decision_id": "d-4", "decision_status": "keep"}))


def deleted_decision(searched: Searched) -> None:
    first, _, last = searched.lines()
    searched.layout.decisions.write_text(first + last)


def deleted_last_decision(searched: Searched) -> None:
    searched.layout.decisions.write_text("".join(searched.lines()[:-1]))
    searched.edit(searched.worse.result, decision_status="review_pending", decision_id=None)


def deleted_anchor(searched: Searched) -> None:
    run_git(searched.root, "update-ref", "-d", ANCHOR)


def copied_run(searched: Searched) -> None:
    copy = searched.layout.run("h-t-0003-1")
    shutil.copytree(searched.keep.folder, copy.folder)
    text = copy.metadata.read_text().replace(KEEP, "h-t-0003-1")
    copy.metadata.write_text(text)
    searched.edit(copy.result, metric_value=0.5, decision_status="review_pending", decision_id=None)


def handmade_run(searched: Searched) -> None:
    run = searched.layout.run("h-t-0003-1")
    run.folder.mkdir()
    for name in ("metadata.json", "result.json"):
        text = (searched.keep.folder / name).read_text().replace(KEEP, "h-t-0003-1")
        (run.folder / name).write_text(text)
    searched.edit(run.result, decision_status="review_pending", decision_id=None)


def replaced(name: str) -> Callable[[Searched], None]:
    def replace(searched: Searched) -> None:
        path = searched.keep.folder / name
        times = path.stat()
        content = path.read_bytes()
        path.write_bytes(content[:-3] + b"0\n ")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return replace


def replaced_attestation(searched: Searched) -> None:
    """By one of the same run that says another value, and is signed by nobody we know."""
    envelope = json.loads(searched.worse.attestation.read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["result"]["metric_value"] = 0.5
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    write_json(searched.worse.attestation, envelope)


def removed_attestation(searched: Searched) -> None:
    searched.worse.attestation.unlink()


def run_of_another_repository(searched: Searched) -> None:
    """It has the same key, task and tag, and went another way."""
    other = Searched(searched.root.parent / "another search")
    shutil.copytree(searched.root, other.root, symlinks=True)
    for value in ("0.8", "0.25"):
        assert other("run-experiment", "--set", f"RATE={value}", "--decide").returncode == 0
    shutil.copytree(other.layout.run("h-t-0004-1").folder, searched.layout.run("h-t-0004-1").folder)


def deleted_run(searched: Searched) -> None:
    shutil.rmtree(searched.worse.folder)
    assert searched("sync").returncode == 0


def journal_without_signatures(searched: Searched) -> None:
    """As an earlier version wrote it, with another decision, and taken for one by a settle."""
    ours = ("place", "previous", "genesis", "signed_by", "signature")
    lines = [json.loads(line) for line in searched.lines()]
    searched.layout.decisions.unlink()
    deleted_anchor(searched)
    for line in lines:
        kept = {name: value for name, value in line.items() if name not in ours}
        jsonl.append(searched.layout.decisions, {**kept, "detail": "it was no better"})
    searched("decide")


def everything_put_back(searched: Searched) -> None:
    """Journal, anchor, reference and stamp as they were after the first decision."""
    chain = DecisionChain(Repository(searched.root), searched.layout)
    first, *_ = searched.lines()
    searched.layout.decisions.write_text("")
    deleted_anchor(searched)
    chain.begin()
    searched.layout.decisions.write_text(first)
    chain.advance()
    base = json.loads(first)["reference_after"]
    run_git(searched.root, "update-ref", "refs/autohypothesis/reference/t", base)
    for run in (searched.keep, searched.worse):
        searched.edit(run.result, decision_status="review_pending", decision_id=None)


def voided_rival(searched: Searched) -> None:
    """As a decision voids a run whose processor was shared; none did."""
    result = read_json(searched.worse.result)
    result["evidence"]["voided_value"] = result["metric_value"]
    result["metrics"]["val_bpb"] = None
    changed = {"status": "failed", "failure_kind": "contended", "metric_value": None}
    write_json(searched.worse.result, {**result, **changed})


def moved_reference(searched: Searched) -> None:
    worse = run_git(searched.root, "rev-parse", f"refs/experiments/{WORSE}")
    run_git(searched.root, "update-ref", "refs/autohypothesis/reference/t", worse)


def moved_experiment(searched: Searched) -> None:
    other = run_git(searched.root, "rev-parse", f"refs/experiments/{KEEP}")
    run_git(searched.root, "update-ref", f"refs/experiments/{WORSE}", other)


def edited_column(searched: Searched) -> None:
    text = searched.layout.ledger.read_text()
    searched.layout.ledger.write_text(text.replace('"val_bpb":1.36', '"val_bpb":0.5'))


def row_before_the_right_one(searched: Searched) -> None:
    text = searched.layout.ledger.read_text()
    row = text.splitlines()[-1].replace('"metric_value":1.36', '"metric_value":0.5')
    searched.layout.ledger.write_text(f"{row}\n{text}")


def row_of_no_run(searched: Searched) -> None:
    text = searched.layout.ledger.read_text()
    searched.layout.ledger.write_text(text + text.splitlines()[-1].replace("0002", "0009") + "\n")


def edited_ledger(searched: Searched) -> None:
    text = searched.layout.ledger.read_text()
    searched.layout.ledger.write_text(text.replace('"metric_value":1.36', '"metric_value":0.5'))


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (edited_result, f"{WORSE}: result.json says metric_value 0.5, and its attestation 1.36"),
        (edited_value_in_a_decision, "decisions.jsonl line 3 does not fit its signature"),
        (edited_decision, "decisions.jsonl line 3 does not fit its signature: it was edited"),
        (appended_decision, "decisions.jsonl line 4 is signed by no key"),
        (appended_link, "decisions.jsonl line 4 is signed by no key"),
        (deleted_decision, "decisions.jsonl lacks 1 decision before line 2: deleted"),
        (deleted_last_decision, "decisions.jsonl lacks its last 1 decision: 3 lines were anchored"),
        (deleted_anchor, f"{ANCHOR} is gone"),
        (copied_run, f"h-t-0003-1: attestation.json is of experiment {KEEP}: it was copied"),
        (handmade_run, "h-t-0003-1: attestation.json is missing: no collector vouches"),
        (replaced("exit.json"), f"{KEEP}: exit.json has SHA-256 "),
        (replaced("run.log"), f"{KEEP}: run.log has SHA-256 "),
        (replaced("weights.pt"), f"{KEEP}: weights.pt has SHA-256 "),
        (replaced_attestation, f"{WORSE}: attestation.json does not fit its signature"),
        (removed_attestation, f"{WORSE}: attestation.json is gone; d-000003-{WORSE} was made"),
        (moved_reference, "refs/autohypothesis/reference/t is at "),
        (moved_experiment, f"{WORSE}: refs/experiments/{WORSE} is at "),
        (run_of_another_repository, "h-t-0004-1: decisions.jsonl lacks the line that was its last"),
        (deleted_run, f"{WORSE}: attestation.json is gone; d-000003-{WORSE} was made from it"),
        (journal_without_signatures, f"{WORSE}: decisions.jsonl has d-000003-{WORSE} without sign"),
        (everything_put_back, f"{WORSE}: decisions.jsonl lacks the line that was its last when"),
        (voided_rival, f"{WORSE}: result.json says metric_value null, and its attestation 1.36"),
        (edited_column, f"{WORSE}: experiments.jsonl says val_bpb 0.5, and the records 1.36"),
        (row_before_the_right_one, f"{WORSE}: experiments.jsonl says metric_value 0.5, and the"),
        (row_of_no_run, "h-t-0009-1: experiments.jsonl has a row of it, and there is no such run"),
        (edited_ledger, f"{WORSE}: experiments.jsonl says metric_value 0.5, and the records 1.36"),
    ],
)  # fmt: skip
def test_a_forgery_is_named_with_its_file(
    searched: Searched, forge: Callable[[Searched], None], named: str
) -> None:
    forge(searched)
    found = searched.findings()
    assert any(line.startswith(named) for line in found), found


def test_weights_of_keeps_are_kept_and_missed_others_are_not(searched: Searched) -> None:
    assert searched.worse.weights.exists()
    searched.worse.weights.unlink()
    assert searched.findings() == []
    searched.keep.weights.unlink()
    assert searched.findings() == []  # a copy, as a snapshot is, has none
    assert searched("run-experiment", "--set", "RATE=0.25", "--decide").returncode == 0
    made = searched.layout.run("h-t-0003-1")
    made.weights.unlink()
    assert searched.findings() == [
        "h-t-0003-1: weights.pt is gone, and the weights of keeps are kept"
    ]


def test_a_bundle_is_verified_elsewhere_with_nothing_but_the_public_key(
    searched: Searched, tmp_path: Path
) -> None:
    public = shutil.copy(keys_folder() / "fleet.pub", tmp_path / "theirs.pub")
    there = {"AUTOHYPOTHESIS_CONFIG": str(tmp_path / "another machine")}
    answer = searched("verify", KEEP, "--key", str(public), **there)
    assert (answer.returncode, answer.stderr) == (0, "")
    answer = searched("verify", KEEP, **there)
    assert answer.returncode == 1
    assert "is signed by the key" in answer.stdout
    answer = searched("verify", KEEP, "--key", str(searched.keep.log), **there)
    assert (answer.returncode, "holds no Ed25519 public key" in answer.stderr) == (2, True)


def test_runs_of_earlier_versions_are_unattested_and_not_forged(searched: Searched) -> None:
    for run in (searched.layout.run("baseline-t-1"), searched.keep, searched.worse):
        run.attestation.unlink()
    chained = {"attestation", "place", "previous", "genesis", "signed_by", "signature"}
    old = [json.loads(line) for line in searched.lines()]
    searched.layout.decisions.unlink()
    run_git(searched.root, "update-ref", "-d", ANCHOR)
    for line in old:
        jsonl.append(searched.layout.decisions, {k: v for k, v in line.items() if k not in chained})
    assert searched.findings() == []
    assert searched("run-experiment", "--set", "RATE=0.25", "--decide").returncode == 0
    answer = searched("verify", "--all")
    assert "1 signed run, 3 unattested" in answer.stdout, answer
    searched.edit(searched.keep.result, metric_value=0.5)
    assert searched.findings()[0].startswith(f"{KEEP}: result.json says metric_value 0.5")


def test_a_keep_of_an_edited_run_waits_for_a_person_and_the_rest_is_decided(
    searched: Searched,
) -> None:
    for value in ("0.25", "0.24", "0.95"):
        assert searched("run-experiment", "--set", f"RATE={value}").returncode == 0
    edited = searched.layout.run("h-t-0003-1")
    searched.edit(edited.result, metric_value=0.9)
    project = Project.open(searched.root)
    settlement = settle(project, decided_by="policy")
    (refused,) = settlement.refused.items()
    assert refused[0] == "h-t-0003-1"
    assert "it needs you: result.json says metric_value 0.9" in str(refused[1])
    statuses = {each.experiment_id: each.decision_status for each in settlement.decisions}
    assert statuses == {"h-t-0004-1": "keep", "h-t-0005-1": "discard"}
    assert searched("decide", "h-t-0003-1", "discard").returncode == 0


def test_a_broken_chain_parks_every_keep_until_a_person_accepts_it(searched: Searched) -> None:
    deleted_last_decision(searched)
    answer = searched("run-experiment", "--set", "RATE=0.25", "--decide")
    assert "decisions.jsonl lacks its last 1 decision" in answer.stderr, answer
    assert searched("verify", "--accept").returncode == 0
    assert searched("decide").returncode == 0
    assert searched.findings() == []


def test_records_that_were_put_back_are_clean_once_a_person_accepts_them(
    searched: Searched,
) -> None:
    everything_put_back(searched)
    assert searched("verify", "--accept").returncode == 0
    assert searched.findings() == []


def test_a_reference_that_was_moved_stays_named_after_later_decisions(searched: Searched) -> None:
    first = run_git(searched.root, "rev-parse", "refs/experiments/baseline-t-1")
    run_git(searched.root, "update-ref", "refs/autohypothesis/reference/t", first)
    assert searched("run-experiment", "--set", "RATE=0.91", "--decide").returncode == 0
    (line,) = [line for line in searched.findings() if "reference/t" in line]
    assert "between d-000003-" in line
    assert "moved by hand" in line


def test_a_result_made_by_hand_is_not_signed_for_its_maker(searched: Searched) -> None:
    handmade_run(searched)
    run = searched.layout.run("h-t-0003-1")
    hashed = hashlib.sha256(run.result.read_bytes()).hexdigest()
    shutil.copy(searched.keep.run_spec, run.run_spec)
    write_json(run.local, {"before": {}, "judged": hashed})
    searched("decide")
    assert not run.attestation.exists()
    assert any(line.startswith("h-t-0003-1: attestation.json") for line in searched.findings())


def test_a_kill_between_attestation_and_result_is_no_forgery_and_is_made_up_for(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, content: bytes | str, **how: bool) -> None:
        if path.name == "result.json":
            os._exit(9)
        write_atomic(path, content, **how)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_atomic", killed)
        process = forked(searched, "run-experiment", "--set", "RATE=0.25")
        process.join()
        assert process.exitcode == 9
    run = searched.layout.run("h-t-0003-1")
    assert (run.attestation.exists(), run.result.exists()) == (True, False)
    assert searched.findings() == []
    assert searched("run-experiment", "--set", "RATE=0.91", "--decide").returncode == 0
    assert run.result.exists()
    assert searched("decide").returncode == 0
    assert searched.findings() == []


def test_what_is_decided_while_it_is_verified_is_no_forgery(searched: Searched) -> None:
    def late(layout: Layout) -> list[Link]:
        patch.undo()
        assert (
            searched("run-experiment", "--set", f"RATE={values.pop()}", "--decide").returncode == 0
        )
        return read_links(layout)

    project = Project.open(searched.root)
    values, patch = ["0.26", "0.25"], pytest.MonkeyPatch()
    patch.setattr(verify, "read_links", late)
    stale = verify.Verifier(project.repository, project.layout, trusted_keys())
    assert not stale.is_current()
    assert [each.file for each in stale.verify().findings] == ["refs/autohypothesis/reference/t"]
    patch.setattr(verify, "read_links", late)
    assert verify.verify(project.repository, project.layout, trusted_keys()).findings == []


def test_what_was_not_signed_before_the_library_was_installed_is_unattested(
    tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = Searched(begun(tmp_path / "a search"))
    with monkeypatch.context() as patch:
        for module in (attestation, chain_module, verify):
            patch.setattr(module, "own_signer", lambda: None)
        for words in (["--tag", "t"], ["--set", "RATE=0.8"]):
            assert searched("run-experiment", *words, "--decide").returncode == 0
    assert searched.findings() == []
    assert searched("run-experiment", "--set", "RATE=0.6", "--decide").returncode == 0
    answer = searched("verify", "--all")
    assert "1 signed run, 2 unattested" in answer.stdout, answer


def test_a_search_that_git_brought_back_is_as_it_was_signed(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights, and with the ends of long logs."""
    monkeypatch.setattr(attestation, "LOG_TAIL", 40)
    assert searched("run-experiment", "--set", "RATE=0.25", "--decide").returncode == 0
    assert searched("sync", "--snapshot").returncode == 0
    there = Searched(tmp_path / "there")
    run_git(tmp_path, "clone", "-q", str(searched.root), str(there.root))
    specs = [f"refs/{name}/*:refs/{name}/*" for name in ("autohypothesis", "experiments")]
    run_git(there.root, "fetch", "-q", "origin", *specs)
    assert there("restore").returncode == 0
    log = there.layout.run("h-t-0003-1").log
    assert log.stat().st_size < searched.layout.run("h-t-0003-1").log.stat().st_size
    newest = "h-t-0003-1: run.log has SHA-256"  # the others were signed at the usual limit
    assert not any("h-t-0003-1" in line for line in there.findings())
    log.write_bytes(log.read_bytes()[:-3])
    assert any(line.startswith(newest) for line in there.findings())


def test_up_names_what_is_wrong_before_it_starts(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_commands, "bring_up", lambda *_, **__: None)
    assert searched("up", "--cpu-workers", "1").returncode == 0
    replaced("exit.json")(searched)
    assert f"needs you: {KEEP}: exit.json has SHA-256" in searched("up").stderr


def test_a_run_is_made_again_and_another_value_is_named(searched: Searched) -> None:
    answer = searched("verify", KEEP, "--rerun")
    assert answer.returncode == 0, answer
    assert "1.01; recorded: 1.01" in answer.stderr
    assert searched.findings() == []
    changed = {"metric_value": 0.5, "metrics": {"val_bpb": 0.5}}
    searched.edit(searched.worse.result, **changed)
    answer = searched("verify", WORSE, "--rerun")
    assert answer.returncode == 1, answer
    found = answer.stdout
    assert any(f"{WORSE}: result.json says 0.5, and h-t-" in line for line in found.splitlines()), (
        answer
    )
    assert searched("verify", "--all", "--rerun").returncode == 2
