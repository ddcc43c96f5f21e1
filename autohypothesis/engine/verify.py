"""Holds the records of a repository against what was signed: bundles, decisions, refs, ledger.

It reads only, needs no network, and trusts no key but those that it is given. What nobody signed
(a run of an earlier version, or of another tool) is said to be unattested, never to be right. A
person with the key can sign anything: see docs/trust.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

from autohypothesis.engine.attestation import (
    Attestation,
    changed_files,
    collected_fields,
    read_attestation,
)
from autohypothesis.engine.evidence import restored
from autohypothesis.engine.project import run_ids
from autohypothesis.engine.reference import REFERENCES
from autohypothesis.errors import RecordError, SettleError, SignatureError
from autohypothesis.records import bundles, jsonl
from autohypothesis.records.bundles import is_of_no_search
from autohypothesis.records.chain import (
    ANCHOR,
    Anchor,
    problems_of,
    read_anchor,
    read_links,
)
from autohypothesis.records.files import load, parse_json, read_bytes, read_object
from autohypothesis.records.git import EXPERIMENTS, Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.ledger import refold
from autohypothesis.records.signing import Keys, own_signer, trusted_keys
from autohypothesis.schema import Decision, Result, finite


class Finding(NamedTuple):
    """One thing that is not as it was signed or decided."""

    experiment_id: str
    """Empty where it concerns the whole search."""
    file: str
    """A file of the bundle or of `research/`, or a ref."""
    problem: str
    """In words that follow the name of the file."""

    @property
    def line(self) -> str:
        return ": ".join(filter(None, (self.experiment_id, f"{self.file} {self.problem}")))


@dataclass
class Verification:
    """What was found."""

    findings: list[Finding] = field(default_factory=list)
    signed: int = 0
    """Runs whose attestation fits."""
    unattested: list[str] = field(default_factory=list)
    """Runs of an earlier version or another tool, of which nothing was signed."""
    decisions: int = 0
    """Lines of the journal that are signed and anchored, or pinned."""


def refuse_unverified(
    repository: Repository, layout: Layout, name: str, decision: Decision | None
) -> None:
    """See that a run and the journal are as they were signed, before a decision rests on them.

    Without a key of its own a fleet signs nothing, and has nothing to compare with.

    Raises:
        SettleError: they are not; it names the first finding.
    """
    if own_signer() is None:
        return
    verifier = Verifier(repository, layout, trusted_keys())
    for finding in (*verifier.bundle(name, decision)[0], *verifier.journal()):
        raise SettleError(
            f"it needs you: {finding.file} {finding.problem}",
            hint=f"see all of it: python orchestrator.py verify {name}; if you know why, decide it"
            f" by hand: python orchestrator.py decide {name} keep",
        )


def findings_in_keeps(repository: Repository, layout: Layout, tag: str) -> list[Finding]:
    """Return what `up` says before it starts: see `Verifier.keeps`. Nothing without a key."""
    if own_signer() is None:
        return []
    return Verifier(repository, layout, trusted_keys()).keeps(tag)


class Verifier:
    """The records of one repository, read once."""

    def __init__(self, repository: Repository, layout: Layout, keys: Keys) -> None:
        self.repository = repository
        self.layout = layout
        self.keys = keys
        self.links = read_links(layout)
        self.refs = repository.refs(ANCHOR, REFERENCES, EXPERIMENTS)

    @cached_property
    def decisions(self) -> list[Decision]:
        return bundles.read_decisions(self.layout)[0]

    @cached_property
    def latest(self) -> dict[str, Decision]:
        return {decision.experiment_id: decision for decision in self.decisions}

    def verify(self, names: Iterable[str] | None = None) -> Verification:
        """Check some experiments, or all; and the journal, the references and the ledger.

        Raises:
            RecordError: decisions.jsonl is no regular file, or far too large.
        """
        found = Verification(findings=[*self.journal(), *self._references()])
        found.decisions = len(self.links)
        here = run_ids(self.layout)
        for name in here if names is None else names:
            signed = self._run(name, found)
            found.signed += signed is not None
        self._fold(found, None if names is None else set(names))
        return found

    # ── the journal and the references ────────────────────────────────────────────────────

    @cached_property
    def anchor(self) -> Anchor | SignatureError | None:
        if ANCHOR not in self.refs:
            return None
        try:
            return read_anchor(self.repository, self.refs[ANCHOR], self.keys)
        except SignatureError as error:
            return error

    @property
    def pinned(self) -> Anchor:
        """The anchor, or an empty one in place of what cannot be believed."""
        anchor = self.anchor
        return anchor if isinstance(anchor, Anchor) else Anchor(lines=0, head="")

    def journal(self) -> Iterator[Finding]:
        """Yield what is wrong with decisions.jsonl and its anchor."""
        anchor, name = self.anchor, self.layout.decisions.name
        if isinstance(anchor, SignatureError):
            yield Finding("", ANCHOR, anchor.problem)
            anchor = None
        elif anchor is None and any(link.signature for link in self.links):
            yield Finding("", ANCHOR, "is gone: what was cut off the end of the journal is unknown")
        if anchor is not None or any(link.place is not None for link in self.links):
            for problem in problems_of(self.links, anchor, self.keys):
                yield Finding("", name, problem)

    def _references(self) -> Iterator[Finding]:
        """Yield each move of a reference that no decision made."""
        chained: dict[str, list[Decision]] = defaultdict(list)
        for decision in self.decisions:
            if not self._is_old(decision) and decision.reference_after:
                chained[decision.tag].append(decision)
        known = {*self.pinned.taken_in, None}
        for tag, decisions in chained.items():
            ref, last = REFERENCES + tag, decisions[-1]
            for one, other in pairwise(decisions):
                if other.reference_before not in (one.reference_after, *known):
                    yield Finding(
                        "", ref, f"went from {_commit(one.reference_after)} to"
                        f" {_commit(other.reference_before)} between {one.decision_id} and"
                        f" {other.decision_id}: moved by hand",
                    )  # fmt: skip
            at = self.refs.get(ref)
            if at not in (last.reference_after, *known) and not self._is_on_its_way(last, at):
                yield Finding(
                    "", ref, f"is at {_commit(at)}, and {last.decision_id} left it at"
                    f" {_commit(last.reference_after)}: moved by hand",
                )  # fmt: skip
            elif at is None:
                yield Finding("", ref, f"is gone; {last.decision_id} left it at"
                              f" {_commit(last.reference_after)}")  # fmt: skip

    def _is_on_its_way(self, last: Decision, at: str | None) -> bool:
        """Return whether a kill came before the move, which the next settle makes up for."""
        result = read_object(self.layout.run(last.experiment_id).result)
        return at == last.reference_before and result.get("decision_id") != last.decision_id

    def _is_old(self, decision: Decision) -> bool:
        return decision.place is None or decision.place < self.pinned.pinned_lines

    def keeps(self, tag: str) -> list[Finding]:
        """Return what is wrong with the journal, the references and the keeps of a search: at ten
        thousand runs a matter of a second."""
        kept = [d for d in self.latest.values() if (d.tag, d.decision_status) == (tag, "keep")]
        bundles_of_keeps = (self.bundle(d.experiment_id, d, whole=False)[0] for d in kept)
        return [*self.journal(), *self._references(), *chain.from_iterable(bundles_of_keeps)]

    # ── one run ───────────────────────────────────────────────────────────────────────────

    def bundle(
        self, name: str, decision: Decision | None, *, whole: bool = True
    ) -> tuple[list[Finding], Attestation | None]:
        """Return what is wrong with the bundle of a run, and its attestation where that fits.

        It may be older than attestations: then there is neither.

        Args:
            whole: read small files although nothing seems to have written to them.
        """
        run = self.layout.run(name)
        try:
            attestation = read_attestation(run, self.keys)
        except FileNotFoundError:
            return self._without_attestation(name, decision), None
        except SignatureError as error:
            return [Finding(name, run.attestation.name, error.problem)], None
        found = [
            *changed_files(run, attestation, whole=whole),
            *((run.result.name, problem) for problem in _result(run, attestation)),
            *self._decision(decision, attestation),
            *self._ref(name, attestation),
        ]
        return [Finding(name, *each) for each in found], attestation

    def _run(self, name: str, found: Verification) -> Attestation | None:
        run, decision = self.layout.run(name), self.latest.get(name)
        if not run.folder.is_dir():
            raise SettleError(
                f"there is no run {name!r} in {self.layout.runs}",
                hint="run `python orchestrator.py runs` for the ids there are",
            )
        if decision is None and not run.result.exists():
            return None  # it runs
        problems, attestation = self.bundle(name, decision)
        found.findings += problems
        if attestation is None and not problems:
            found.unattested.append(name)
        kept = decision is not None and decision.decision_status == "keep"
        had_weights = attestation is not None and run.weights.name in attestation.digests
        if kept and had_weights and not run.weights.exists():
            problem = "is gone, and the weights of keeps are kept"
            found.findings.append(Finding(name, run.weights.name, problem))
        return attestation

    def _without_attestation(self, name: str, decision: Decision | None) -> list[Finding]:
        run, file = self.layout.run(name), self.layout.run(name).attestation.name
        if decision is not None and decision.attestation:
            problem = f"is gone; {decision.decision_id} was made from it"
            return [Finding(name, file, problem)]
        old = decision is not None and self._is_old(decision)
        recorded = decision is not None or run.metadata.exists()  # else it can never be decided
        if old or not recorded or name in self.pinned.unattested or is_of_no_search(run):
            return [Finding(name, run.result.name, problem) for problem in _exit_record(run)]
        if not self.links and self.anchor is None:
            return []  # nothing was decided yet by a version that attests
        return [Finding(name, file, "is missing: no collector vouches for this result.json")]

    def _decision(
        self, decision: Decision | None, attestation: Attestation
    ) -> Iterator[tuple[str, str]]:
        if decision is None:
            return
        file, about = self.layout.decisions.name, decision.decision_id
        if decision.attestation not in ("", attestation.hash):
            yield "attestation.json", f"is not the one that {about} was made from: replaced"
        signed: Mapping[str, Any] = attestation.predicate.get("result") or {}
        stated = {
            "metric_value": (decision.metric_value, finite(signed.get("metric_value"))),
            "commit": (decision.commit, signed.get("commit")),
            "base_commit": (decision.base_commit, signed.get("parent_commit")),
            "seed": (decision.seed, attestation.predicate.get("seed")),
            "tag": (decision.tag, attestation.predicate.get("tag")),
            "platform_key": (
                decision.platform_key, attestation.predicate.get("platform_key", "")
            ),
        }  # fmt: skip
        if decision.metric_value is None and decision.decision_status != "keep":
            del stated["metric_value"]  # a value may be voided
        for name, (decided, collected) in stated.items():
            if decided != collected:
                yield file, f"says {name} {decided} in {about}, and the attestation {collected}"

    def _ref(self, name: str, attestation: Attestation) -> Iterator[tuple[str, str]]:
        commit, at = attestation.predicate.get("commit"), self.refs.get(EXPERIMENTS + name)
        if at is not None and at != commit:
            yield EXPERIMENTS + name, f"is at {_commit(at)}, and the run was of {_commit(commit)}"

    # ── the ledger ────────────────────────────────────────────────────────────────────────

    def _fold(self, found: Verification, names: set[str] | None) -> None:
        """Add what bundles say against decisions, and rows of the ledger against both."""
        known = {(finding.experiment_id, finding.file) for finding in found.findings}
        folded, rows = refold(self.layout, cold=True), dict(_rows(self.layout))
        for name, entry in folded.entries.items():
            if names is not None and name not in names:
                continue
            for file, problem, _ in entry.details.wrong:
                if (name, file) not in known:
                    found.findings.append(Finding(name, file, problem))
            if (stated := rows.get(name)) is not None:
                right = parse_json(folded.line(name))
                found.findings += _row(name, self.layout.ledger.name, stated, right)


def _result(run: RunPaths, attestation: Attestation) -> Iterator[str]:
    try:
        yield from edited_fields(load(Result, run.result), attestation)
    except FileNotFoundError:
        yield "is gone"
    except RecordError as error:
        yield error.problem.removeprefix(f"{run.result} ")


def edited_fields(result: Result, attestation: Attestation) -> Iterator[str]:
    """Yield what result.json says otherwise than the collector did, in words that follow its name.

    A decision may void a value, and bring it back; it says so in a record of its own.
    """
    signed: Mapping[str, Any] = attestation.predicate.get("result") or {}
    if collected_fields(result) == signed:
        return
    stated = collected_fields(restored(result))
    if "voided_value" not in (signed.get("evidence") or {}):
        stated["evidence"].pop("voided_value", None)
    for name in sorted({*signed, *stated}):
        if stated.get(name) != signed.get(name):
            says, was = _short(stated.get(name)), _short(signed.get(name))
            yield f"says {name} {says}, and its attestation {was}: edited"


def _exit_record(run: RunPaths) -> Iterator[str]:
    """Compare the value of an unattested run with what its scorer printed, as exit.json has it."""
    result, score = read_object(run.result), read_object(run.exit).get("score") or {}
    printed = score.get("result") if isinstance(score, dict) else None
    scored = finite(printed.get(result.get("metric_name"))) if isinstance(printed, dict) else None
    value = finite(result.get("metric_value"))
    if None not in (scored, value) and scored != value:
        yield f"says {value}, and the score in exit.json is {scored}"


def _rows(layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = read_bytes(layout.ledger, jsonl.FILE_LIMIT)
    except (FileNotFoundError, RecordError):
        return
    for row in jsonl.parse(content)[0]:
        yield str(row.get("id")), row


def _row(name: str, file: str, row: Mapping[str, Any], right: Any) -> Iterator[Finding]:
    """Compare what ranks a row. One that was decided since the last sync is only late."""
    late = row.get("ordinal") is None
    fields = ("metric_value", "commit") if late else ("metric_value", "commit", "decision_status")
    for key in fields:
        if row.get(key) != right.get(key):
            says, is_right = _short(row.get(key)), _short(right.get(key))
            yield Finding(name, file, f"says {key} {says}, and the records {is_right}: edited")


def _commit(name: object) -> str:
    return str(name)[:12] if name else "nothing"


def _short(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
