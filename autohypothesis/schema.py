"""The contract: every file that a fleet reads or writes, as pydantic models.

Two kinds of models. In `Strict` ones an unknown key is an error that names the nearest known one.
`Tolerant` ones are what runs left behind, old tools included: strings that hold numbers are read as
numbers, unknown keys are kept, and what is not a finite number is `null`, never 0.0. Both publish
the same names: see docs/files.md, generated from here.

Times are UTC, RFC 3339. Memory is in MiB (`_mb`) or GiB (`_gb`), as published; `val_bpb` is bits
per UTF-8 byte of the validation text; durations are seconds.
"""
# Annotations are evaluated as they stand: as strings each would be compiled again by pydantic, a
# tenth of the time that importing this page takes.

import math
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, get_args
from unicodedata import category

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

# ── words ───────────────────────────────────────────────────────────────────────────────────

ExecutionStatus = Literal["planned", "running", "completed", "failed"]
DecisionStatus = Literal["review_pending", "keep", "discard", "crash", "replicate", "cancelled"]
Confirmation = Literal["none", "provisional", "confirmed", "refuted"]
HypothesisState = Literal["pending", "dispatched", "running", "done"]
FailureKind = Literal[
    "oom",
    "nan",
    "timeout",
    "code_error",
    "no_metric",
    "invalid",
    "nothing_new",
    "contended",
    "infra",
    "cancelled",
]
EventType = Literal["run_started", "heartbeat", "run_completed", "run_failed"]
WorkerState = Literal["idle", "preparing", "training", "scoring", "reporting", "benched", "stopped"]
ToolStatus = Literal["requested", "published", "adopted", "discarded"]
QueueStatus = Literal["pending", "dispatched", "completed", "abandoned"]
Direction = Literal["minimize", "maximize"]
Clock = Literal["wall", "cpu"]

MAX_NUMBER_LENGTH = 64
"""Characters; a longer string is not a measurement, and Python refuses it past 4,300 digits."""
MAX_SEED = 2**63 - 1
"""A signed integer of 64 bits, as torch and NumPy take it."""
EARLIEST, LATEST = (
    datetime(1970, 1, 1, tzinfo=timezone.utc),
    datetime(9000, 1, 1, tzinfo=timezone.utc),
)
"""Times outside of these are refused: differences with them may overflow."""


# ── values ──────────────────────────────────────────────────────────────────────────────────


def finite(value: object) -> float | None:
    """`value` as a finite float, or None: NaN, infinities, text and truth values are no numbers."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        if len(value) > MAX_NUMBER_LENGTH:
            return None
        value = value.strip().replace(",", "").removesuffix("%")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def whole(value: object) -> int | None:
    """`value` as an integer of 64 bits, or None when it is not one."""
    number = finite(value)
    if number is None or number != int(number):
        return None
    exact = value if isinstance(value, int) else int(number)
    return exact if -(2**63) <= exact < 2**63 else None


def utc(value: object) -> object:
    """A time without a zone is read as UTC: older tools wrote it that way.

    Raises:
        ValueError: it is no time, or one before 1970 or after the year 8999.
    """
    if isinstance(value, str):
        if len(value) > MAX_NUMBER_LENGTH:
            raise ValueError(f"a time of {len(value)} characters")
        try:
            value = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        except ValueError as error:
            raise ValueError(f"{value!r} is not an RFC 3339 time") from error
    if isinstance(value, datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=timezone.utc)
        if not EARLIEST <= value < LATEST:
            raise ValueError(f"{value.isoformat()!r} is no time between 1970 and 8999")
        return value.astimezone(timezone.utc)
    return value


def now() -> datetime:
    """The current time in UTC, to the millisecond that the files hold."""
    moment = datetime.now(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Number = Annotated[float | None, BeforeValidator(finite)]
Whole = Annotated[int | None, BeforeValidator(whole)]
Time = Annotated[
    datetime,
    BeforeValidator(utc),
    AfterValidator(utc),  # what pydantic made of a number
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
]


def id_text(value: object) -> object:
    """Return an id as text: older tools wrote `gpu_id: 0`."""
    return str(value) if isinstance(value, int) else value


IdText = Annotated[str, BeforeValidator(id_text)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
Setting = bool | int | float | str | list[Any] | None
"""A literal that a top-level constant can hold."""


def did_you_mean(name: str, known: list[str]) -> str:
    """` (did you mean X?)`, or nothing when no known name is near."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Strict(BaseModel):
    """An unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(
        extra="forbid", validate_by_name=True, validate_by_alias=True, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [str(field.alias or name) for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), known)}")
        return data


class Tolerant(BaseModel):
    """Left behind by runs, ours and older ones: unknown keys are kept."""

    model_config = ConfigDict(
        extra="allow", validate_by_name=True, validate_by_alias=True, defer_build=True
    )


# ── hypotheses and plans ────────────────────────────────────────────────────────────────────


class Prediction(Strict):
    """The effect that a proposer expects, registered before the run."""

    delta: Number = None
    """Expected change of the metric, candidate minus reference, in the metric's unit."""
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None


def without_controls(value: object) -> object:
    """A text as git and a terminal can take it: of the control characters, lines and tabs stay."""
    if not isinstance(value, str):
        return value
    return "".join(sign for sign in value if sign in "\n\t" or category(sign) != "Cc")


class Proposal(Strict):
    """`research/inbox/*.json`: an idea, a reason, and one change; what a proposer answers with."""

    title: Annotated[str, Field(min_length=1, max_length=200), BeforeValidator(without_controls)]
    rationale: Annotated[str, Field(max_length=4_000), BeforeValidator(without_controls)] = ""
    config_overrides: dict[str, Setting] = {}
    patch: str | None = None
    instructions: str | None = None
    artifacts_from: Annotated[str, Field(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")] | None = None
    """A commit whose artifacts are taken as they are: a candidate of another agent."""
    prediction: Prediction | None = None
    priority: Number = 0.0
    source_id: str = ""
    """Its id at its source, before it was made a file name."""
    replicates: Identifier | None = None
    """The first experiment of the group that this one repeats."""
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    """None: the first seed, at which values are compared."""
    _left_out: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def left_out(self) -> dict[str, str]:
        """Field -> why `read` left it out. It is in no file."""
        return self._left_out

    @classmethod
    def read(cls, value: object) -> "Proposal":
        """Return the proposal that a program wrote, without the fields that are wrong.

        What an idea is (its change, seed and `replicates`) must be right. A title that is missing
        or wrong is made from the change.

        Raises:
            ValidationError: the change is wrong, or an unknown key is nearly the name of one.
        """
        if isinstance(value, cls) or not isinstance(value, dict):
            return cls.model_validate(value)
        fields = dict(value)
        left_out = _take_out_unknown(cls, fields)
        if isinstance(effect := fields.get("prediction"), dict):
            fields["prediction"] = effect = dict(effect)
            left_out |= _take_out_unknown(Prediction, effect, "prediction.")
            left_out |= _take_out_text(effect, "delta", "prediction.")
        left_out |= _take_out_text(fields, "priority")
        if isinstance(settings := fields.get("config_overrides"), dict):
            fields["config_overrides"] = settings = dict(settings)
            left_out |= _take_out_nulls(settings)
        try:
            proposal = cls.model_validate(fields)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                left_out |= _take_out_fault(fields, fault)
            if "title" in left_out:
                if not any(fields.get(change) for change in _CHANGES):
                    return cls.model_validate(value)  # raises, and names every fault
                fields["title"] = fields.get("title") or _title_of(fields)
            proposal = cls.model_validate(fields)
        proposal._left_out = left_out
        return proposal

    @model_validator(mode="after")
    def _one_kind_of_change(self) -> "Proposal":
        kinds = [self.config_overrides, self.patch, self.instructions, self.artifacts_from]
        if sum(map(bool, kinds)) > 1:
            raise ValueError(
                "config_overrides, patch, instructions and artifacts_from: a hypothesis has one"
                " kind of change"
            )
        return self


_CAN_BE_LEFT_OUT = ("title", "rationale", "prediction", "priority", "source_id")
_CHANGES = ("config_overrides", "patch", "instructions", "artifacts_from", "replicates")


def _take_out_unknown(
    model: type[BaseModel], fields: dict[str, Any], prefix: str = ""
) -> dict[str, str]:
    """Take unknown keys out of `fields`; return key -> why.

    One that is nearly the name of a change stays, so that the model refuses it.
    """
    left_out, known = {}, list(model.model_fields)
    for key in [key for key in fields if key not in known]:
        near = get_close_matches(str(key), known, 1)
        if not near or near[0] not in _CHANGES:
            left_out[f"{prefix}{key}"] = f"unknown key{did_you_mean(str(key), known)}"
            del fields[key]
    return left_out


def _take_out_text(fields: dict[str, Any], key: str, prefix: str = "") -> dict[str, str]:
    """Take out a number that is none: the model would read it as null."""
    if fields.get(key) is None or finite(fields[key]) is not None:
        return {}
    return {f"{prefix}{key}": f"{str(fields.pop(key))[:60]!r} is no number"}


def _take_out_nulls(settings: dict[str, Any]) -> dict[str, str]:
    """Take out constants that are null: programs write that for one they leave as it is."""
    reason = "null keeps a constant as it is; a patch can make it None"
    nulls = [name for name, value in settings.items() if value is None]
    for name in nulls:
        del settings[name]
    return {f"config_overrides.{name}": reason for name in nulls}


def _take_out_fault(fields: dict[str, Any], fault: ErrorDetails) -> dict[str, str]:
    """Take out the field of a fault, or cut it where it is too long; return it with the reason."""
    where = [str(part) for part in fault["loc"]]
    if not where or where[0] not in _CAN_BE_LEFT_OUT:
        return {}  # the model refuses it again
    holder = fields if len(where) == 1 else fields[where[0]]
    value = holder.pop(where[-1], None)
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "string_too_long":
        most = fault["ctx"]["max_length"]
        holder[where[-1]], reason = f"{value[: most - 1]}…", f"cut at {most:,} characters"
    elif fault["type"] == "model_type":
        reason = f"{str(value)[:60]!r} is no object with {' and '.join(Prediction.model_fields)}"
    return {".".join(where): reason[:1].lower() + reason[1:]}


def _title_of(fields: dict[str, Any]) -> str:
    """Return a title for an idea that has none: its constants, or the beginning of its words."""
    overrides = fields.get("config_overrides")
    if isinstance(overrides, dict) and overrides:
        return ", ".join(f"{name} = {value}" for name, value in overrides.items())[:200]
    words = fields.get("rationale") or fields.get("instructions") or "a change without a title"
    return " ".join(str(words).split())[:200]


class Hypothesis(Proposal):
    """`research/hypotheses/<state>/<id>.json`: a proposal that was taken into the queue."""

    hypothesis_id: Identifier
    tag: Identifier
    created_at: Time = Field(default_factory=now)
    proposer: str = ""
    closed: Literal["completed", "abandoned"] | None = None
    """Set once it is done: `completed` has a run to decide, `abandoned` has none."""
    outcome: str = ""
    tried: Annotated[int, Field(ge=0)] = 0
    """The number of its newest experiment when it was last queued again; 0: never run before."""
    claimed: bool | None = None
    """true: a hub granted the claim; false: the hub could not be reached; null: no hub."""
    worker_id: str = ""
    """The only worker that may run it; empty: any."""
    platform_key: str = ""
    """The beginning of the only platform key that it may run on; empty: any."""

    @model_validator(mode="after")
    def _routing_of_older_versions(self) -> "Hypothesis":
        """Read the marks `@worker` and `#key` that the observer put into `source_id` before."""
        if self.proposer == "observer" and not (self.worker_id or self.platform_key):
            for mark, name in (("@", "worker_id"), ("#", "platform_key")):
                _, found, value = self.source_id.rpartition(mark)
                if found:
                    object.__setattr__(self, name, value)
        return self


class PlannedHypothesis(Tolerant):
    hypothesis_id: IdText = ""
    title: str = ""
    rationale: str = ""
    config_overrides: dict[str, Any] = {}
    patch: str | None = None
    instructions: str | None = None
    artifacts_from: str | None = None
    prediction: Prediction | str | None = None
    """Older tools wrote it as a text."""


class Plan(Tolerant):
    """`research/plans/<experiment_id>.json`, written in the step that allocates the id."""

    experiment_id: IdText = ""
    created_at: Time
    based_on_commit: str = ""
    worker_id: IdText = ""
    tag: str = ""
    seed: Whole = None
    replicates: str | None = None
    node_id: str = ""
    claimed: bool | None = None
    """As the hypothesis has it; null without a hub, and for what needs no claim: a baseline, a
    replicate, a try of another agent's commit."""
    hypothesis: PlannedHypothesis


# ── bundles ─────────────────────────────────────────────────────────────────────────────────


class RunIdentity(Tolerant):
    experiment_id: IdText = ""
    worker_id: IdText = ""
    gpu_id: IdText = ""
    hypothesis_id: IdText = ""
    rationale: str = ""
    title: str = ""
    tag: str = ""
    seed: Whole = None
    replicates: str | None = None
    node_id: str = ""


NO_SANDBOX = ("none", "hashes")
"""Values of `sandbox` that kept a run from nothing; the second is that of the first release."""


class Runtime(Tolerant):
    commit: str = ""
    parent_commit: str | None = None
    gpu_name: str = ""
    diff_stat: str = ""
    diff_hash: str = ""
    tree_hash: str = ""
    """Of the artifacts' paths and contents: equal for the same files."""
    code_hash: str = ""
    """Of the same without the values of the settings: runs with an equal one differ in their
    settings alone, any other is of edited code. Empty in the records of older versions."""
    lines_added: Whole = None
    lines_removed: Whole = None
    platform_key: str = ""
    profile: str = ""
    data_hash: str = ""
    task_hash: str = ""
    budget_seconds: Number = None
    clock: Clock | None = None
    torch_version: str = ""
    sandbox: str = ""
    """The sandbox of the run: bwrap (bubblewrap, with Landlock inside), landlock alone, or none."""
    isolation: str = ""
    """The isolation that the task asked for: strict, writes or none."""
    included: dict[str, str] = {}
    """Untracked file or folder that the checkout had -> hash of what was copied, or how it was
    linked."""
    checkout_lacks: list[str] = []
    """The largest untracked files and folders that the checkout did not have, with their sizes."""
    home: Literal["own", "links", "kept", ""] = ""
    """Whether the training saw a home folder of its own, one with links to the user's, or that."""

    @property
    def is_unconfined(self) -> bool:
        """Whether the task asked for a strict sandbox, and the run had none."""
        return self.isolation == "strict" and self.sandbox in ("", *NO_SANDBOX)


class Metrics(Tolerant):
    """The official score, what the engine measured or knows, and what the run printed of itself.

    What is only printed is nobody's word but the run's: `mfu_percent`, `total_tokens_M`,
    `num_steps`, `train_bpb`, `total_seconds`, and figures of a task's own.
    """

    val_bpb: Number = None
    """The official score when there is one, else the printed value."""
    printed_val_bpb: Number = None
    score_difference: Number = None
    """Official minus printed."""
    peak_vram_mb: Number = None
    """As printed; a constraint is held against the larger of this and what was measured."""
    training_seconds: Number = None
    """By the clock that the kernel's account agrees with; without a clock, as printed."""
    total_seconds: Number = None
    mfu_percent: Number = None
    total_tokens_M: Number = None  # noqa: N815  published name
    num_steps: Whole = None
    num_params_M: Number = None  # noqa: N815  published name
    """Of weights that were scored: counted in weights.pt; else as printed."""
    depth: Whole = None
    """As the source has it, where it is a constant there; else as printed."""
    train_bpb: Number = None
    tokens_per_second: Number = None
    cpu_seconds: Number = None
    energy_joules: Number = None

    @model_validator(mode="before")
    @classmethod
    def _older_units(cls, data: Any) -> Any:
        """Older bundles give the peak in GB; their crashes are 0.0, which is no measurement."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("peak_vram_mb") is None and finite(data.get("peak_vram_gb")) is not None:
            data["peak_vram_mb"] = finite(data["peak_vram_gb"]) * 1024  # type: ignore[operator]
        bpb = finite(data.get("val_bpb"))
        if bpb is not None and bpb <= 0:
            data["val_bpb"] = None
        return data


class Metadata(Tolerant):
    """`research/runs/<id>/metadata.json`: who ran what, on which commit and machine."""

    recorded_at: Time
    run: RunIdentity = Field(default_factory=RunIdentity)
    runtime: Runtime = Field(default_factory=Runtime)
    hyperparameters: dict[str, Any] = {}
    """The hyper-parameters, as config.json has them."""
    metrics: Metrics = Field(default_factory=Metrics)


class Result(Tolerant):
    """`research/runs/<id>/result.json`: what came of it, with the latest decision stamped in."""

    status: ExecutionStatus
    decision_status: DecisionStatus = "review_pending"
    decision_id: str | None = None
    """The record in decisions.jsonl that `decision_status` was stamped from."""
    recorded_at: Time
    commit: str = ""
    parent_commit: str | None = None
    title: str = ""
    analysis: str = ""
    outcome: str = ""
    failure_kind: FailureKind | None = None
    failure_detail: str = ""
    log_tail: str = ""
    attested: bool = False
    confirmation: Confirmation = "none"
    metric_name: str = "val_bpb"
    metric_value: Number = None
    direction: Direction = "minimize"
    evidence: dict[str, Any] = {}
    """Measurements beside the number that a decision rests on: clock, contention, guard."""
    metrics: Metrics = Field(default_factory=Metrics)


class Event(Tolerant):
    """One line of `events.jsonl`."""

    event_type: EventType
    recorded_at: Time
    worker_id: IdText = ""
    gpu_id: IdText = ""
    commit: str = ""


class ClockCheck(Tolerant):
    """The training's clock against the kernel's."""

    clock: str = ""
    """`cpu` or `wall`."""
    claimed_s: Number = None
    kernel_s: Number = None
    drift: Number = None
    """Kernel over claimed, minus one."""
    early_draw: bool = False
    verdict: str = ""
    reason: str = ""


class ExitRecord(Tolerant):
    """`exit.json`, written by the shim when the training and its scoring have ended."""

    experiment_id: str
    status: Literal["exited", "signalled", "deadline", "cancelled", "infra", "processes"]
    exit_code: Whole = None
    signal: Whole = None
    started_at: Time | None = None
    ended_at: Time
    wall_seconds: Number = None
    cpu_seconds: Number = None
    peak_rss_mb: Number = None
    peak_vram_mb: Number = None
    device: dict[str, Any] = {}
    clock: ClockCheck = Field(default_factory=ClockCheck)
    contention: dict[str, Any] = {}
    energy_joules: Number = None
    log: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    """Of a training that failed, what the machine says: `no_room`, `file_limit`, `cpu_limit`,
    `cuda_error`. A failure that a run could cause is one of the machine only where this agrees."""
    score: dict[str, Any] | None = None
    metrics: dict[str, Any] = {}
    summaries_seen: int = 0
    """How often the metric was printed, in its strongest form."""
    metric_values: list[float | None] = []
    """Different values of the metric that were printed, the last one last; null for what is no
    plausible number."""
    samples: list[list[float | None]] = []
    """Up to 200 rows of [share of the budget, loss, bpb, tokens per second]."""
    strays_killed: list[int] | int = 0
    tampered: list[str] = []
    """Changes that the run made to its own record, as text; any of them makes the run invalid."""
    seal: str = ""
    """A secret that only this run's shim was given; launch.json has its SHA-256."""
    error: str | None = None


# ── decisions ───────────────────────────────────────────────────────────────────────────────


class Decision(Tolerant):
    """One line of `research/decisions.jsonl`, the truth about what was decided and when."""

    decision_id: str
    recorded_at: Time
    tag: str
    experiment_id: str
    hypothesis_id: str = ""
    commit: str = ""
    base_commit: str | None = None
    decision_status: Literal["keep", "discard", "crash", "replicate", "cancelled"]
    reason: str = ""
    """One word: improved, simpler, baseline, replicate, worse, within_noise, not_confirmed,
    stale_base, constraint, unattested, a failure kind, or by_hand."""
    detail: str = ""
    seed: Whole = None
    """The seed of the run: values compare at one seed only."""
    metric_value: Number = None
    reference_value: Number = None
    improvement: Number = None
    """Against `reference_value`, positive is better whatever the direction. Of a run that was
    repeated in pairs, the mean over those."""
    min_delta: Number = None
    """The improvement that it takes to be kept."""
    pairs: Whole = None
    """Pairs of runs at further seeds of which `improvement` is the mean; 0 or null: none."""
    delta: Number = None
    """Metric minus that of the best kept before it on the same platform."""
    confirmation: Confirmation = "none"
    """For a keep: provisional on one seed, confirmed when it was met again at further ones. Of a
    discard: refuted when it was not."""
    reference_before: str | None = None
    reference_after: str | None = None
    metric_name: str = ""
    direction: Direction | None = None
    """The direction of the metric. Records of older versions may not say it."""
    platform_key: str = ""
    lines_changed: Whole = None
    """Lines added minus lines removed."""
    diff_hash: str = ""
    tree_hash: str = ""
    lane: str = ""
    """The device, as `gpu_id` has it; what follows is how fast it was, and known of CPU lanes."""
    lane_kernel_ms: Number = None
    tokens_per_second: Number = None
    simplification: bool = False
    requeue: bool = False
    decided_by: str = ""
    attestation: str = ""
    """SHA-256 of the bundle's attestation.json as it was decided on; empty where it had none."""
    place: Whole = None
    """Number of its line, from 0; null in records from before the chain. It and what follows are
    written by the journal itself, at the end of the line."""
    previous: str = ""
    """SHA-256 of the line before, without its break; of nothing, where it is the first."""
    genesis: str = ""
    """In the first line of the chain alone: SHA-256 of all that stands before it."""
    repaired: Whole = None
    """Bytes of the line before, where a kill has cut that off and it is no record."""
    signed_by: str = ""
    """SHA-256 of the public key."""
    signature: str = ""
    """Of the line without this key, as DSSE signs a payload."""


# ── the ledger ──────────────────────────────────────────────────────────────────────────────


class Row(Tolerant):
    """One line of `experiments.jsonl`: an experiment, everything that is known about it."""

    id: str
    commit: str = ""
    parent_commit: str | None = None
    timestamp: Time | None = None
    status: str = "planned"
    """The decision where there is one, else the execution status. `artifact_invalid`: a file cannot
    be used. `damaged`: the bundle says something else than what was decided, or is of another run.
    """
    description: str = ""
    ordinal: int | None = None
    """Place in the sequence of decisions of its tag; null while undecided."""
    execution_status: ExecutionStatus = "planned"
    decision_status: DecisionStatus = "review_pending"
    decided_by: str = ""
    """The maker of the decision; `imported`: another tool, whose search this was. Such a row is
    attested by nobody, moves no reference and is never the best."""
    val_bpb: Number = None
    delta: Number = None
    """Metric minus that of the best kept before it, on the same platform of the same tag. The first
    that is kept, a baseline as a rule, has 0.0. Without a metric, as after a crash, it is null."""
    num_steps: Whole = None
    training_seconds: Number = None
    total_seconds: Number = None
    mfu_percent: Number = None
    total_tokens_M: Number = None  # noqa: N815  published name
    peak_vram_gb: Number = None
    num_params_M: Number = None  # noqa: N815  published name
    depth: Whole = None
    train_bpb: Number = None
    bpb_at_checkpoints: dict[str, float] = {}
    """Training bpb at 25, 50, 75 and 100 % of the budget."""
    still_improving: bool | None = None
    improvement_rate: Number = None
    """bpb per minute of budget over the last quarter, positive is improving."""
    tokens_per_second: Number = None
    diff_stat: str = ""
    diff_hash: str = ""
    code_hash: str = ""
    """Equal for runs that differ in their settings alone; another one: the code was edited."""
    decision_markdown_path: str = ""
    decision_markdown: str = ""
    gpu_name: str = ""
    model_dim: Whole = None
    n_heads: Whole = None
    head_dim: Whole = None
    window_pattern: str | None = None
    total_batch_size: Whole = None
    device_batch_size: Whole = None
    matrix_lr: Number = None
    embedding_lr: Number = None
    weight_decay: Number = None
    warmdown_ratio: Number = None
    adam_betas: list[float] | None = None
    worker_id: str = ""
    gpu_id: str = ""
    hypothesis_id: str = ""
    rationale: str = ""
    outcome: str = ""
    notes: list[str] = []
    tag: str = ""
    seed: Whole = None
    replicates: str | None = None
    confirmation: Confirmation = "none"
    failure_kind: FailureKind | None = None
    platform_key: str = ""
    profile: str = ""
    attested: bool = False
    sandbox: str = ""
    """The sandbox of the run: bwrap, landlock or none; empty for a recorded run."""
    checkout_lacks: list[str] = []
    """The largest untracked files and folders that its checkout did not have."""
    metric_name: str = "val_bpb"
    metric_value: Number = None
    direction: Direction = "minimize"
    node_id: str = ""
    claimed: bool | None = None
    reason: str = ""
    """Why it was decided so, in one word; this and what follows are the decision's."""
    reference_value: Number = None
    """The metric of the base on which it was decided."""
    improvement: Number = None
    """Against that base, positive is better whatever the direction; over `pairs`, their mean."""
    min_delta: Number = None
    """The improvement that it takes to be kept."""
    pairs: Whole = None
    """Pairs of runs at further seeds of which `improvement` is the mean; 0 or null: none."""


class Leaderboard(Tolerant):
    """`research/aggregate/leaderboard.json`."""

    generated_at: Time
    total_runs: int
    """Of the tag, whatever became of them."""
    decided_runs: int
    """Kept, discarded or crashed: repeats, and what was lost, cancelled or nothing new, are not
    among them."""
    outcomes: dict[str, int] = {}
    """keep, discard, crash, replicate, nothing_new (the files were as in a run before, and are
    not judged), lost (a crash by a fault of the machine), cancelled, undecided, damaged ->
    number."""
    active_workers: int
    best_run: dict[str, Any] | None
    baseline: Number = None
    """Value of the first kept run of the unchanged script, on the platform of the best."""
    keep_rate: Number
    """Kept over decided runs, baselines not counted; null before the first decision."""


class Problem(Strict):
    """Something under research/ that the fold could not use, and went on without."""

    path: str
    reason: str
    experiment_id: str | None = None
    decided_otherwise: bool = False
    """Whether the file states another value than was decided, which stands."""


# ── the fleet ───────────────────────────────────────────────────────────────────────────────


class Worker(Tolerant):
    worker_id: IdText
    gpu_id: IdText
    """The name that the user chose it by: an index of NVML, or the core of a CPU slot."""
    device: str = ""
    """The device that is leased: the UUID of a GPU, or `cpu-<core>`."""
    kind: Literal["cpu", "cuda"] | None = None
    branch: str = ""
    worktree_path: str = ""
    prompt_path: str = ""
    current_run_id: str | None = None
    current_hypothesis_id: str | None = None
    current_title: str | None = None


class SearchSettings(Tolerant):
    """The settings that a search was started with, and that `--tag` takes up again."""

    task: str = ""
    """Id of the task that is searched: a tag has one. Older manifests do not say."""
    task_file: str = ""
    """Its file, from the root; empty for the repository's default one."""
    folder: str = ""
    """Where the script of a search without a task file lies; empty for the root."""
    inputs: dict[str, str] = {}
    """Variable -> folder of each input, as located when the tag began: a search keeps its data."""
    proposers: list[str] = []
    """Sources of ideas, the first is asked first: `search`, `command:PROGRAM`, `inbox`, or what a
    package brings."""
    mix: Number = None
    """Share of joint moves among the search's proposals; null: after a plateau."""
    tool_command: str = ""
    """The program that is asked for helper scripts no catalogue has; empty: a person is."""


FORMAT = 1
"""The format of the files under `research/`. A manifest without one is read as this one."""


class Manifest(SearchSettings):
    """`research/fleet/manifest.json`: the one active tag, and who works on it."""

    format: Annotated[int, Field(ge=0, le=FORMAT)] = FORMAT
    """A greater one was written by a newer version, and is refused."""
    tag: Identifier
    created_at: Time
    repository_root: str
    shared_research_dir: str
    observer_prompt_path: str = ""
    tool_builder_prompt_path: str = ""
    workers: list[Worker] = []
    hub: str = ""
    """The address of the hub where results are shared; empty: none."""
    earlier: dict[str, SearchSettings] = {}
    """Tag -> settings of each earlier search."""


def worker_state(value: object) -> object:
    """Return a state as we call it: other tools have words of their own for a worker at work."""
    known = value in get_args(WorkerState) or not isinstance(value, str)
    return value if known else "training" if value == "running" else "idle"


class Heartbeat(Tolerant):
    """`research/live/workers/<worker_id>.json`."""

    worker_id: IdText
    node_id: str = ""
    gpu_id: IdText = ""
    run_id: IdText | None = None
    state: Annotated[WorkerState, BeforeValidator(worker_state)] = "idle"
    updated_at: Time
    pid: Whole = None
    process_start: Number = None
    """Start time of the process, which with the pid identifies it: pids are reused."""
    started_at: Time | None = None
    since: Time | None = None
    """When it entered its state."""
    busy_seconds: Number = None
    """Seconds that its device has trained or scored for it since `started_at`."""
    commit: str = ""
    hypothesis_id: str | None = None
    next_hypothesis_id: str | None = None
    """The one that is prepared while this one trains."""
    title: str | None = None
    diff_stat: str = ""
    notes: str = ""
    metrics: dict[str, Any] = {}
    progress: dict[str, Any] = {}
    paths: dict[str, str] = {}


class RoleStatus(Tolerant):
    """`research/live/<role>.json`: the observer, the tool-builder, the supervisor, a loop."""

    role: str
    node_id: str = ""
    pid: Whole = None
    process_start: Number = None
    state: str = ""
    """One word: starting, working, waiting, finished, failed, stopped."""
    started_at: Time | None = None
    updated_at: Time
    last_action: str = ""
    last_action_at: Time | None = None
    problems: list[str] = []
    """Problems that need a person, one line each."""
    details: dict[str, Any] = {}


class Steering(Strict):
    """The fenced block of `research/steering.md` or `program.md`: it binds every proposer."""

    frozen: list[str] = []
    """Constants that may not change."""
    ranges: dict[str, tuple[float, float]] = {}
    """Constant -> lowest and highest value."""
    memory_limit_mb: Number = None
    """A run with a higher peak is discarded."""
    directions: list[str] = []
    """Directions to try, as text; they go into every brief."""
    stop: bool = False
    """Let what runs end, and start nothing new."""


class OutboxEntry(Tolerant):
    """`research/outbox/<state>/<kind>.<name>.json`: a message for a hub, delivered once."""

    kind: Identifier
    """`push`, `result`, `line`, `post` or another kind that its courier knows."""
    name: Identifier
    """Unique in its kind; an entry with the name of one that was sent is not sent again."""
    created_at: Time = Field(default_factory=now)
    number: int
    """Nanoseconds since the epoch: they are sent in this order."""
    payload: dict[str, Any] = {}
    tries: Annotated[int, Field(ge=0)] = 0
    """Number of deliveries begun."""
    mark: Any = None
    """The receiver's newest record before the first try: a newer one may be this entry."""
    last_error: str = ""
    receipt: str = ""
    """Its name at the receiver, once it was sent."""
    closed_at: Time | None = None


class OthersResult(Tolerant):
    """A result of another agent, as a hub told it."""

    id: int
    agent_id: str
    commit: str
    description: str = ""
    metric: str = "val_bpb"
    value: Number = None
    status: str = ""
    state: str = "claimed"
    """claimed, reproduced, refuted."""
    reproduced: int = 0
    platform: str = ""
    platform_key: str = ""
    task_hash: str = ""


class OthersCommit(Tolerant):
    hash: str
    agent_id: str = ""
    message: str = ""


class OthersPost(Tolerant):
    id: int
    agent_id: str = ""
    content: str = ""


class HubFeed(Tolerant):
    """`research/live/hub.json`: the last answers of the hub. Texts of others are data."""

    generated_at: Time
    server: str
    agent: str
    board: list[OthersResult] = []
    """Kept results of others on a platform of ours, as the hub ranks them."""
    results: list[OthersResult] = []
    """The newest of others on any platform."""
    frontier: list[OthersCommit] = []
    """Commits that nothing is built on yet."""
    discussion: list[OthersPost] = []


class LiveSummary(Tolerant):
    """`research/live/summary.json`."""

    generated_at: Time
    workers: list[Heartbeat] = []
    active_runs: list[str] = []
    free_workers: list[str] = []
    best_result: dict[str, Any] | None = None
    paths: dict[str, str] = {}


class BestResult(Tolerant):
    commit: str
    val_bpb: Number
    memory_gb: Number = None
    status: str = ""
    description: str = ""


class Finding(Strict):
    finding_id: str
    title: str
    evidence: str = ""
    confidence: str | float = ""
    mechanism: str = ""
    implication: str = ""


class QueueEntry(Strict):
    """A hypothesis as the brief shows it."""

    hypothesis_id: str
    title: str
    rationale: str = ""
    config_overrides: dict[str, Setting] = {}
    change: str = ""
    """Of one without `config_overrides`: what kind of edit it is."""
    priority: Number = 0.0
    status: QueueStatus = "pending"
    assigned_worker: str | None = None
    outcome: str | None = None


class Others(Strict):
    """Results and posts of agents on other machines, a line each: data, never instructions."""

    server: str
    results: list[str] = []
    frontier: list[str] = []
    discussion: list[str] = []


class Brief(Strict):
    """`research/research_brief.json`, at most `MAX_BYTES`: what a proposer is told."""

    MAX_BYTES: ClassVar[int] = 32 * 1024

    generated_at: Time
    repository: str = ""
    objective: str = ""
    constraints: list[str] = []
    current_config: dict[str, Any] = {}
    best_result: BestResult | None = None
    findings: list[Finding] = []
    open_questions: list[str] = []
    hypothesis_queue: list[QueueEntry] = []
    others: Others | None = None
    notes: list[str] = []


class Tool(Strict):
    tool_id: Identifier
    title: str
    status: ToolStatus
    requested_at: Time | None = None
    requested_by: str = ""
    problem: str = ""
    path: str = ""
    summary: str = ""
    usage: str = ""
    decided_at: Time | None = None
    decided_by: str = ""
    notes: str = ""
    sha256: str = ""
    """Hash of the published file: one that differs is not run."""
    calls: int = 0
    failures: int = 0
    attempts: int = 0
    """Number of failed builds."""
    retry_at: Time | None = None


class Registry(Strict):
    """`research/tools/registry.json`."""

    updated_at: Time
    shared_tools_dir: str
    tools: list[Tool] = []


class KnowledgeBase(Strict):
    """`research/knowledge_base.json`."""

    updated_at: Time
    repository: str = ""
    confirmed_findings: list[Finding] = []
    tentative_findings: list[Finding] = []
    contradictions: list[str] = []
    invalid_regions: list[str] = []
    experiment_history: list[dict[str, Any]] = []
    meta_research: dict[str, Any] = {}


# ── which file holds which model ────────────────────────────────────────────────────────────

FILES: dict[str, type[BaseModel]] = {
    "research/fleet/manifest.json": Manifest,
    "research/hypotheses/<state>/<hypothesis_id>.json": Hypothesis,
    "research/inbox/*.json": Proposal,
    "research/research_brief.json": Brief,
    "research/knowledge_base.json": KnowledgeBase,
    "research/decisions.jsonl (a line)": Decision,
    "research/plans/<experiment_id>.json": Plan,
    "research/runs/<experiment_id>/metadata.json": Metadata,
    "research/runs/<experiment_id>/result.json": Result,
    "research/runs/<experiment_id>/exit.json": ExitRecord,
    "research/runs/<experiment_id>/events.jsonl (a line)": Event,
    "research/live/workers/<worker_id>.json": Heartbeat,
    "research/live/summary.json": LiveSummary,
    "research/live/<role>.json": RoleStatus,
    "research/steering.md (its fenced block)": Steering,
    "research/aggregate/leaderboard.json": Leaderboard,
    "research/aggregate/problems.json (an entry)": Problem,
    "research/tools/registry.json": Registry,
    "research/outbox/<state>/<kind>.<name>.json": OutboxEntry,
    "experiments.jsonl (a line)": Row,
}

FAILURE_KINDS: tuple[str, ...] = get_args(FailureKind)
