"""A task: what may change, how it is run, how it is scored, what counts as better.

`TaskFile` is what task.yaml says, relative to its own folder; task_file.py reads one. `Task` is
resolved: its patterns are relative to the repository, and it is a value that can be sent elsewhere
as JSON. `task_hash` and `platform_key` say which experiments are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from autohypothesis.engine.constants import option_name
from autohypothesis.errors import ChangeError
from autohypothesis.records.git import Entry
from autohypothesis.schema import Clock, Direction, Setting, did_you_mean
from autohypothesis.system import cpu_model

DEFAULT_BUDGET_S = 300.0


def _inside(path: str) -> str:
    problem = pattern_problem(path)
    if problem:
        raise ValueError(f"{path!r} {problem}")
    return path


def _words(value: Any) -> Any:
    """Split a command that is one line, as a shell splits it; no shell ever runs it."""
    if isinstance(value, str):
        return shlex.split(value)
    if isinstance(value, (list, tuple)):
        return [str(word) if type(word) in (int, float) else word for word in value]
    return value


def _stringify(value: Any) -> Any:
    """Make text of variables that YAML made numbers of."""
    if isinstance(value, dict):
        return {name: str(v) if type(v) in (int, float) else v for name, v in value.items()}
    return value


RepoPath = Annotated[str, AfterValidator(_inside)]
"""A path or pattern that cannot leave the repository."""
CommandLine = Annotated[
    tuple[str, ...],
    BeforeValidator(_words, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
Isolation = Literal["strict", "writes", "none"]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0)]


class TaskSection(BaseModel):
    """A part of a task: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(TaskSection):
    """Data that the training needs, and the program that says where it is.

    `locate` prints one JSON object; its `path` goes into the variable `env` (see inputs.py).
    """

    env: VariableName
    locate: CommandLine


class MutationLimits(TaskSection):
    """The largest change that is accepted."""

    max_files: Annotated[int, Field(ge=1)] = 10
    max_lines: Annotated[int, Field(ge=1)] = 2_000
    """Lines added plus lines removed."""
    max_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    """Size of one changed file."""


class MutatorConfig(TaskSection):
    """Where changes come from, in `task run`.

    overrides: a search over `knobs`. command: a program that has an idea and makes the edit.
    implementer: a program that makes the edit which a hypothesis describes in `instructions`.
    """

    type: Literal["command", "overrides", "implementer"] = "overrides"
    command: CommandLine | None = None
    """Edits the artifacts in a checkout of the reference, see docs/tasks.md."""
    cwd: RepoPath = "."
    """Where it runs, relative to the repository."""
    timeout_seconds: Seconds = 600.0

    @model_validator(mode="after")
    def _command_has_words(self) -> MutatorConfig:
        if (self.type == "overrides") != (self.command is None):
            raise ValueError(
                "`command: ...` goes with `type: command` and `type: implementer`, and only there"
            )
        return self


class Budget(TaskSection):
    """The duration of a training, and the clock that measures it."""

    seconds: Seconds = DEFAULT_BUDGET_S
    clock: Clock = "wall"


class RunConfig(TaskSection):
    command: CommandLine | None = None
    """None: nothing where a program scores; else `environment.training_command` finds one."""
    cwd: RepoPath = "."
    """Relative to the repository."""
    env: Annotated[dict[VariableName, str], BeforeValidator(_stringify)] = {}
    budget: Budget | None = None
    """None: what an input reports, else 300 s of wall clock."""
    preflight: CommandLine | None = None
    """Prints a JSON verdict about a candidate in seconds, without training it."""
    deadline_seconds: Seconds | None = None
    """None: start-up allowance + factor x budget + evaluation allowance."""
    max_processes: Annotated[int, Field(ge=1)] = 512
    """Processes that the run, or its scoring, may have at once, and four threads for each; more
    end it. Data loaders and compilers start one for each core."""
    log: RepoPath | None = None
    """A file in the checkout that holds the summary, for a script that does not print it."""
    device: Literal["cpu", "cuda"] | None = None
    """None: what an input reports, else a GPU where there is one."""
    git: bool = False
    """Whether the checkout is a repository of its own with one commit, for a script that asks git
    for a version."""
    include: tuple[Annotated[str, Field(pattern=r"^[^\r\n\x00]+$")], ...] = ()
    """Untracked files that a run needs, in the syntax of .gitignore, from the repository's top; as
    in .worktreeinclude."""

    @property
    def options(self) -> set[str]:
        """Return the settings that the options of `command` give, whatever the script says."""
        return {option_name(word) for word in self.command or () if word.startswith("--")}


class Parse(TaskSection):
    """How a score is parsed from the output of the scorer."""

    format: Literal["json", "regex"] = "json"
    score_field: str = "score"
    metrics_field: str = "metrics"
    pattern: str | None = None
    """The expression of `regex`: its first group, or the group `score`, is the number."""
    take: Literal["only", "last", "best"] = "only"
    """only: two different values in one run are none. last: the last value is the score, for a
    script that prints one each epoch. best: the best one is, for a script that keeps its best
    weights."""

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Parse:
        if (self.format == "regex") != (self.pattern is not None):
            raise ValueError("`format: regex` and `pattern: ...` go together")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no expression: {error}") from error
            if not groups:
                raise ValueError(f"pattern {self.pattern!r} has no group for the number")
        return self


class ScorerConfig(TaskSection):
    """log: the script's own lines. command: a program. model: the evaluator, in a fresh process."""

    type: Literal["log", "command", "model"] = "log"
    command: CommandLine | None = None
    cwd: RepoPath | None = None
    """Where `command` runs, relative to the repository. None: where the run does."""
    evaluator: RepoPath | None = None
    """The protected file that scores a model; taken from the commit, by hash."""
    parse: Parse = Parse()
    timeout_seconds: Seconds = 600.0

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> ScorerConfig:
        if self.type == "command" and self.command is None:
            raise ValueError("`type: command` needs `command: ...`")
        if self.type != "command" and self.command is not None:
            raise ValueError(f"`command` is for `type: command`, this one is `type: {self.type}`")
        if self.type == "model" and self.evaluator is None:
            raise ValueError("`type: model` needs `evaluator: FILE`")
        return self


class Objective(TaskSection):
    metric: Annotated[str, Field(min_length=1)] = "val_bpb"
    direction: Direction = "minimize"
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """The smallest difference that is not noise: at least twice the spread of a pair of seeds."""
    target: float | None = None
    """The search ends when the metric is this good."""


class Constraint(TaskSection):
    """An upper limit on another metric. Over `soft` is noted, over `hard` is a discard."""

    soft: float | None = None
    hard: float | None = None

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Constraint:
        if self.soft is None and self.hard is None:
            raise ValueError("give `soft`, `hard` or both")
        if self.soft is not None and self.hard is not None and self.soft > self.hard:
            raise ValueError(f"soft {self.soft:g} is over hard {self.hard:g}")
        return self


class Policy(TaskSection):
    keep: Literal["improve", "simpler"] = "simpler"
    """simpler: an equal score with fewer lines is kept too."""
    replicates: Annotated[int, Field(ge=0)] = 0
    """Number of further runs of a win before it is confirmed."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """End the search after so many decisions without a keep."""


class SearchBudget(TaskSection):
    """The budget of the whole search, not of one training."""

    runs: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None


class Knob(TaskSection):
    """A constant that a search may change, and its range."""

    type: Literal["float", "int", "choice"] = "float"
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Setting, ...] | None = None

    @model_validator(mode="after")
    def _range_or_choices(self) -> Knob:
        if self.type == "choice":
            if not self.choices or self.low is not None or self.high is not None or self.log:
                raise ValueError("`type: choice` takes `choices: [...]` and nothing else")
            return self
        if self.low is None or self.high is None or self.choices is not None:
            raise ValueError(f"`type: {self.type}` takes `low` and `high`, and no `choices`")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not under high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`log: true` needs a low over 0, not {self.low:g}")
        if self.type == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("`type: int` needs whole numbers for low and high")
        return self


class TaskFile(TaskSection):
    """The content of a task.yaml."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
    description: str = ""
    root: Literal["task", "repository"] = "task"
    """`artifacts` and `protected` are relative to the task file's folder, or to the top."""
    artifacts: Annotated[tuple[RepoPath, ...], Field(min_length=1)]
    """The files that may change; none that a pattern after `!` matches."""
    protected: tuple[RepoPath, ...] | None = None
    """Files whose content decides whether two experiments can be compared. None: every other
    tracked file. Whatever is listed, nothing but artifacts may ever change."""
    inputs: tuple[Input, ...] = ()
    mutation: MutationLimits = MutationLimits()
    mutator: MutatorConfig = MutatorConfig()
    isolation: Isolation | None = None
    """How the programs of a task are kept from the rest of the machine. strict: they read nothing
    but programs, their checkout and their data. writes: they read the disk, but for keys and
    research/. Both write to their checkout, their `out/`, a home and a /tmp of their own. None:
    strict where weights are scored by an evaluator, else writes."""
    network: bool | None = None
    """Whether there is a network inside of the sandbox. None: under `writes`, for a task without a
    mutator program, in a repository that shares with no hub."""
    run: RunConfig = RunConfig()
    scorer: ScorerConfig = ScorerConfig()
    objective: Objective = Objective()
    constraints: dict[str, Constraint] = {}
    policy: Policy = Policy()
    budget: SearchBudget = SearchBudget()
    knobs: dict[str, Knob] = {}

    @model_validator(mode="before")
    @classmethod
    def _older_spelling(cls, data: Any) -> Any:
        """Read `sandbox: auto` or `sandbox: none`, as files of the first release have it."""
        if not isinstance(data, dict) or data.get("sandbox", "auto") not in (None, "auto", "none"):
            return data
        rest = {name: value for name, value in data.items() if name != "sandbox"}
        return {"isolation": "none", **rest} if data.get("sandbox") == "none" else rest


class Task(TaskFile):
    """A resolved task: patterns relative to the repository's top."""

    root: Literal["task", "repository"] = "repository"
    source: str = ""
    """The task file, relative to the repository; empty for a built-in one or one outside."""

    def is_artifact(self, path: str) -> bool:
        """Return whether a change may touch `path`. The task file itself never is one."""
        return path != self.source and matches(path, self.artifacts)

    def is_protected(self, path: str) -> bool:
        """Return whether the content of `path` makes experiments comparable."""
        if path == self.source:
            return False  # what it says is compared, not how it is written
        if self.protected is None:
            return not self.is_artifact(path)
        return matches(path, self.protected)

    @property
    def has_network(self) -> bool:
        """Return `network`; without it, whether the scripts are the user's own under `writes`."""
        if self.network is not None:
            return self.network
        return self.isolation_level == "writes" and self.mutator.command is None

    @property
    def isolation_level(self) -> Isolation:
        """Return `isolation`, or what it is where the file does not say."""
        if self.isolation is not None:
            return self.isolation
        return "strict" if self.scorer.type == "model" else "writes"

    @property
    def scoring_cwd(self) -> str:
        """Return the folder that a scoring program runs in, relative to the repository."""
        return self.run.cwd if self.scorer.cwd is None else self.scorer.cwd

    @property
    def artifact_words(self) -> str:
        """Return the patterns of the artifacts, for people."""
        kept = ", ".join(pattern for pattern in self.artifacts if not pattern.startswith("!"))
        left_out = ", ".join(pattern[1:] for pattern in self.artifacts if pattern.startswith("!"))
        return f"{kept} without {left_out}" if left_out else kept

    def artifacts_in(self, paths: Iterable[str]) -> list[str]:
        return [path for path in paths if self.is_artifact(path)]


# ── patterns ────────────────────────────────────────────────────────────────────────────────
# `*` and `?` stay in one folder, `**` crosses folders, a folder is all that is in it. What a
# pattern after `!` matches is left out, wherever it stands.

_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]|[^*?\[]+|\[")
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def pattern_problem(pattern: str) -> str | None:
    """Return why `pattern` cannot name files inside the repository; None when it can."""
    pattern = pattern.removeprefix("!")
    if not pattern or pattern.strip() != pattern or pattern.startswith("!"):
        return "is empty, or begins or ends with a blank or a second '!'"
    if pattern.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", pattern):
        return "is absolute; write it relative to the repository or the task file"
    if "\\" in pattern or "\0" in pattern or "\n" in pattern:
        return "has a backslash or line break; folders are separated by '/'"
    if ".." in pattern.split("/"):
        return "leaves its folder through '..'"
    return None


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    some = "|".join(_regex(pattern) for pattern in patterns if not pattern.startswith("!"))
    none = "|".join(_regex(pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return re.compile((f"(?!(?:{none})\\Z)" if none else "") + (f"(?:{some})" if some else r"(?!)"))


def _regex(pattern: str) -> str:
    cleaned = pattern.removeprefix("./").rstrip("/")
    if cleaned == ".":
        return ".*"
    return "".join(_part(part) for part in _PARTS.findall(cleaned)) + "(?:/.*)?"


def _part(part: str) -> str:
    if part.startswith("[") and len(part) > 1:
        inside = part[1:-1]
        negated = inside.startswith("!")
        return ("[^/" if negated else "[") + re.escape(inside[negated:]).replace(r"\-", "-") + "]"
    return _WILD.get(part) or re.escape(part)


def matches(path: str, patterns: Iterable[str]) -> bool:
    return _compiled(tuple(patterns)).fullmatch(path) is not None


def matching(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the `paths` that `patterns` name, in their order."""
    compiled = _compiled(tuple(patterns))
    return [path for path in paths if compiled.fullmatch(path)]


# ── what can be compared ────────────────────────────────────────────────────────────────────

_COMPARED = ("run", "scorer", "objective", "constraints")
"""Sections that change what a number means. Policy, knobs and the budget of a whole search only
change what is tried next."""

BY_HAND = "by-hand on "
"""Prefix of the platform key of a recorded run: such runs are compared with each other only."""
_SHORT_NAMES = ("H100", "H200", "A100", "4090", "3090", "3060", "M2 Ultra")


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 of `value` as JSON with sorted keys and no blanks."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def task_hash(task: Task, protected: Mapping[str, str]) -> str:
    """Hash a resolved task with the contents of its protected files (`protected_blobs`)."""
    values = task.model_dump(mode="json", include=set(_COMPARED))
    run = values["run"]
    del values["objective"]["target"]  # says when to stop
    del run["device"]  # its name is in the platform's key
    del run["max_processes"]  # ends a run, and changes no number
    for name in ("include", "git"):  # a task that does without is what it always was
        if not run[name]:
            del run[name]
    if values["scorer"]["cwd"] is None:
        del values["scorer"]["cwd"]
    if values["scorer"]["parse"]["take"] == "only":  # likewise
        del values["scorer"]["parse"]["take"]
    values |= {"artifacts": sorted(task.artifacts), "protected": dict(protected)}
    return canonical_hash(values)


def protected_blobs(task: Task, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return path -> blob of the files that make experiments comparable.

    Raises:
        ChangeError: the commit lacks the evaluator.
    """
    evaluator = task.scorer.evaluator
    if evaluator is not None and evaluator not in entries:
        raise ChangeError(
            f"the commit has no {evaluator}, which scores task {task.id}"
            f"{did_you_mean(evaluator, list(entries))}",
            hint="start from a commit that has it",
        )
    return {path: entry.blob for path, entry in entries.items() if task.is_protected(path)}


def data_hash_with(data_hash: str, included: Mapping[str, str]) -> str:
    """Hash the located data with the files that a checkout has beside its commit."""
    return canonical_hash([data_hash, dict(included)]) if included else data_hash


def platform_key(
    *,
    device_name: str,
    profile_hash: str,
    data_hash: str,
    task_hash: str,
    budget_seconds: float,
    clock: Clock,
) -> str:
    """Return the key of what a number depends on: experiments of one key are compared.

    `device_name` is the driver's, not the short one: two boards of one short name differ in speed.
    So do two processors, which are all called CPU: there the model counts.
    """
    return canonical_hash(
        {
            "device": f"CPU {cpu_model()}" if device_name == "CPU" else device_name,
            "profile": profile_hash,
            "data": data_hash,
            "task": task_hash,
            "budget": float(budget_seconds),
            "clock": clock,
        }
    )


def short_device_name(name: str) -> str:
    """Return `NVIDIA H100 80GB HBM3` in short: H100; a slug where there is no short name."""
    if name.strip().upper() == "CPU" or not name.strip():
        return "CPU"
    whole, _, profile = name.partition(" MIG ")
    for short in _SHORT_NAMES:
        if re.search(rf"\b{short}\b", whole, re.IGNORECASE):
            return short.replace(" ", "-") + (f"-MIG-{profile}" if profile else "")
    words = re.sub(r"\b(?:NVIDIA|GeForce|AMD|Apple)\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-") or "device"
