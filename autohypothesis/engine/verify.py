"""Holds the records of a repository against what was signed: bundles, decisions, refs, ledger.

It reads only, needs no network, and trusts no key but those that it is given. What nobody signed
(a run of an earlier version, or of another tool) is said to be unattested, never to be right. A
person with the key can sign anything: see docs/trust.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

from autohypothesis.engine.attestation import (
    Attestation,
    changed_files,
    collected_fields,
    is_where_it_was,
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
    Link,
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

_TRIES = 5
"""Checks of a search that goes on, before what was found is told."""


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


def verify(
    repository: Repository, layout: Layout, keys: Keys, names: Iterable[str] | None = None
) -> Verification:
    """Check some experiments, or all; and the journal, the references and the ledger.

    Raises:
        RecordError: decisions.jsonl is no regular file, or far too large.
    """
    for _ in range(_TRIES):
        verifier = Verifier(repository, layout, keys)
        found = verifier.verify(names)
        if not found.findings or verifier.is_current():
            break
    return found


class Verifier:
    """The records of one repository, read once."""

    def __init__(self, repository: Repository, layout: Layout, keys: Keys) -> None:
        self.repository = repository
        self.layout = layout
        self.keys = keys
        self.refs = self._refs_now()  # first: the journal may be ahead of its anchor
        self.links = read_links(layout)

    def _refs_now(self) -> dict[str, str]:
        return self.repository.refs(ANCHOR, REFERENCES, EXPERIMENTS)

    def is_current(self) -> bool:
        """Return whether nothing was decided or begun since the records were read."""
        return (self.links, self.refs) == (read_links(self.layout), self._refs_now())

    @cached_property
    def decisions(self) -> list[Decision]:
        return bundles.read_decisions(self.layout)[0]

    @cached_property
    def latest(self) -> dict[str, Decision]:
        return {decision.experiment_id: decision for decision in self.decisions}

    @cached_property
    def voided(self) -> set[str]:
        """Experiments that a decision has voided, which may have brought their value back."""
        return {each.experiment_id for each in self.decisions if each.reason == "contended"}

    def verify(self, names: Iterable[str] | None = None) -> Verification:
        """Check as `verify` does, once: a decision that is made meanwhile may mislead it."""
        found = Verification(findings=[*self.journal(), *self._references()])
        found.decisions = len(self.links)
        attested = (each.experiment_id for each in self.latest.values() if each.attestation)
        for name in {*run_ids(self.layout), *attested} if names is None else names:
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
        elif anchor is None and self._is_signed:
            yield Finding("", ANCHOR, "is gone: what was cut off the end of the journal is unknown")
        if anchor is not None or self._is_signed:
            for problem in problems_of(self.links, anchor, self.keys):
                yield Finding("", name, problem)

    @cached_property
    def _is_signed(self) -> bool:
        return any(link.signature for link in self.links)

    @cached_property
    def _known_lines(self) -> set[str]:
        """Hashes of the lines that are there, or that a person has given up."""
        return {Link(b"").hash, *(link.hash for link in self.links), *self.pinned.lost}

    def lost_lines(self) -> list[str]:
        """Return the hashes of lines that attestations name, and the journal has not."""
        named: set[str] = set()
        for name in run_ids(self.layout):
            with suppress(FileNotFoundError, SignatureError):
                attestation = read_attestation(self.layout.run(name), self.keys)
                named.add(str(attestation.predicate.get("journal") or Link(b"").hash))
        return sorted({*named} - self._known_lines) + list(self.pinned.lost)

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
            *((run.result.name, problem) for problem in self._result(run, attestation)),
            *self._decision(decision, attestation),
            *self._ref(name, attestation),
        ]
        return [Finding(name, *each) for each in found], attestation

    def _run(self, name: str, found: Verification) -> Attestation | None:
        run, decision = self.layout.run(name), self.latest.get(name)
        if not run.folder.is_dir() and decision is None:
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
        if attestation is not None and kept and self._misses_weights(run, attestation):
            problem = "is gone, and the weights of keeps are kept"
            found.findings.append(Finding(name, run.weights.name, problem))
        return attestation

    def _misses_weights(self, run: RunPaths, attestation: Attestation) -> bool:
        """Return whether weights are gone from where they were made; copies may be without."""
        were = run.weights.name in attestation.digests and not run.weights.exists()
        return were and is_where_it_was(run, attestation)

    def _without_attestation(self, name: str, decision: Decision | None) -> list[Finding]:
        run, file = self.layout.run(name), self.layout.run(name).attestation.name
        if decision is not None and decision.attestation:
            problem = f"is gone; {decision.decision_id} was made from it"
            return [Finding(name, file, problem)]
        old = decision is not None and self._is_old(decision)
        recorded = decision is not None or run.metadata.exists()  # else it can never be decided
        if old or not recorded or name in self.pinned.unattested or is_of_no_search(run):
            return [Finding(name, run.result.name, problem) for problem in _exit_record(run)]
        if not self._is_signed and self.anchor is None:
            return []  # nothing was decided yet by a version that attests
        return [Finding(name, file, "is missing: no collector vouches for this result.json")]

    def _decision(
        self, decision: Decision | None, attestation: Attestation
    ) -> Iterator[tuple[str, str]]:
        file = self.layout.decisions.name
        journal = attestation.predicate.get("journal")
        begun = self.links or REFERENCES + str(attestation.predicate.get("tag")) in self.refs
        if journal and begun and journal not in self._known_lines:
            yield (
                file,
                "lacks the line that was its last when this was run: deleted, or the run is"
                " of another repository",
            )
        if decision is None:
            return
        about = decision.decision_id
        if decision.attestation != attestation.hash:
            yield "attestation.json", f"is not the one that {about} was made from: replaced"
        if self._is_old(decision) and not decision.signature and not self.pinned.is_accepted:
            yield file, f"has {about} without signature, and the run is signed: written by hand"
        signed = restored(attestation.result)
        stated = {
            "metric_value": (decision.metric_value, signed.metric_value),
            "commit": (decision.commit, signed.commit),
            "base_commit": (decision.base_commit, signed.parent_commit),
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

    def _result(self, run: RunPaths, attestation: Attestation) -> Iterator[str]:
        try:
            result = load(Result, run.result)
        except FileNotFoundError:
            yield "is gone"
        except RecordError as error:
            yield error.problem.removeprefix(f"{run.result} ")
        else:
            is_voided = run.folder.name in self.voided
            yield from _edited_fields(result, attestation.result, is_voided=is_voided)

    def _ref(self, name: str, attestation: Attestation) -> Iterator[tuple[str, str]]:
        commit, at = attestation.predicate.get("commit"), self.refs.get(EXPERIMENTS + name)
        if at is not None and at != commit:
            yield EXPERIMENTS + name, f"is at {_commit(at)}, and the run was of {_commit(commit)}"

    # ── the ledger ────────────────────────────────────────────────────────────────────────

    def _fold(self, found: Verification, names: set[str] | None) -> None:
        """Add what bundles say against decisions, and rows of the ledger against both."""
        known = {(finding.experiment_id, finding.file) for finding in found.findings}
        rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in _rows(self.layout):  # before the fold, which then knows all of them
            rows[str(row.get("id"))].append(row)
        folded = refold(self.layout, cold=True)
        lines = folded.lines()
        for name in rows.keys() - folded.entries.keys() if names is None else ():
            problem = "has a row of it, and there is no such run: added by hand"
            found.findings.append(Finding(name, self.layout.ledger.name, problem))
        statuses: dict[str, set[str]] = defaultdict(set)
        for decision in self.decisions:
            statuses[decision.experiment_id].add(decision.decision_status)
        for name, entry in folded.entries.items():
            if names is not None and name not in names:
                continue
            for file, problem, _ in entry.details.wrong:
                if (name, file) not in known:
                    found.findings.append(Finding(name, file, problem))
            for stated in rows.get(name, ()):
                right = parse_json(lines[name])
                lost = entry.details.facts.lost_value
                problems = _row(stated, right, {*statuses[name], right["decision_status"]}, lost)
                found.findings += (
                    Finding(name, self.layout.ledger.name, each) for each in problems
                )


def _edited_fields(result: Result, signed: Result, *, is_voided: bool) -> Iterator[str]:
    """Yield what result.json says otherwise than the collector did, in words that follow its name.

    Args:
        is_voided: a decision has voided the value; it or a later one may have brought it back.
    """
    if is_voided:
        result, signed = restored(result), restored(signed)
    says, was = collected_fields(result), collected_fields(signed)
    if is_voided:
        says["evidence"].pop("voided_value", None)
        was["evidence"].pop("voided_value", None)
    for name in sorted({*says, *was}):
        one, other = says.get(name), was.get(name)
        if one != other:
            yield f"says {name} {_short(one)}, and its attestation {_short(other)}: edited"


def _exit_record(run: RunPaths) -> Iterator[str]:
    """Compare the value of an unattested run with what its scorer printed, as exit.json has it."""
    result, score = read_object(run.result), read_object(run.exit).get("score") or {}
    printed = score.get("result") if isinstance(score, dict) else None
    scored = finite(printed.get(result.get("metric_name"))) if isinstance(printed, dict) else None
    value = finite(result.get("metric_value"))
    if None not in (scored, value) and scored != value:
        yield f"says {value}, and the score in exit.json is {scored}"


def _rows(layout: Layout) -> Iterator[dict[str, Any]]:
    try:
        content = read_bytes(layout.ledger, jsonl.FILE_LIMIT)
    except (FileNotFoundError, RecordError):
        return
    yield from jsonl.parse(content)[0]


def _row(
    row: Mapping[str, Any], right: Mapping[str, Any], statuses: set[str], lost: float | None
) -> Iterator[str]:
    """Compare what ranks a row, in words that follow the ledger's name.

    One that was decided, or decided again, since the last sync is only late: it may have the value
    that was voided since, and the status of an earlier decision.
    """
    for key in ("metric_value", "val_bpb", "commit", "decision_status"):
        says, is_right = row.get(key), right.get(key)
        late = key == "decision_status" and (says in statuses or row.get("ordinal") is None)
        late = late or (key in ("metric_value", "val_bpb") and says == lost is not None)
        if says != is_right and not late:
            yield f"says {key} {_short(says)}, and the records {_short(is_right)}: edited"


def _commit(name: object) -> str:
    return str(name)[:12] if name else "nothing"


def _short(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
