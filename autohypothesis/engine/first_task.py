"""The first task file of a repository: what its training script, its pages and its folders say.

`examine` looks and runs nothing. A baseline corrects what it took for the metric, and says how much
two runs of one code differ.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from autohypothesis.engine.constants import read_constants
from autohypothesis.engine.environment import absent_modules
from autohypothesis.engine.foreign_script import (
    Script,
    ScriptFacts,
    documented_commands,
    find_scripts,
    read_script,
)
from autohypothesis.engine.metric_lines import PrintedMetric, find_metrics, is_likely_objective
from autohypothesis.engine.shim import FOREIGN_DEADLINE_S
from autohypothesis.engine.task import Knob
from autohypothesis.engine.untracked_files import UntrackedEntry, is_made_by_tools, measured
from autohypothesis.errors import ChangeError, LaunchError, TaskError, UsageError
from autohypothesis.plain import templates
from autohypothesis.records.git import Repository
from autohypothesis.records.git_export import untracked
from autohypothesis.records.layout import Layout
from autohypothesis.schema import did_you_mean

SHOWN = 5
LOOK_S = 1.0
_WRITTEN = {
    "out", "output", "outputs", "checkpoint", "checkpoints", "ckpt", "ckpts", "log", "logs", "runs",
    "wandb", "lightning_logs", "tb_logs", "results", "mlruns", "plots", "figures", "work",
}  # fmt: skip
"""Names of folders that a training writes."""
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "yaml": "pyyaml", "cv2": "opencv-python", "PIL": "pillow",
    "skimage": "scikit-image", "dotenv": "python-dotenv", "lightning_fabric": "lightning",
}  # fmt: skip


class Choices(NamedTuple):
    """What the user said; None is found."""

    script: str | None = None
    command: str | None = None
    metric: str | None = None
    seconds: float = FOREIGN_DEADLINE_S


class Gap(NamedTuple):
    """Something that is missing, and the command or edit that adds it."""

    what: str
    remedy: str
    is_choice: bool = False
    """Whether the task cannot be written before the user has said it."""


@dataclass(frozen=True)
class Findings:
    """What was found in a repository, and chosen for its task.

    Attributes:
        scripts: what may be the training, the likeliest first.
        command: what is run, from `cwd`; `documented` are other ways that pages name.
        metric: the objective; None where nothing is known before a run.
        data: untracked files that the script reads.
        constants: name -> value of what is set at the top of one artifact alone.
        knobs: those that `search` turns; it finds UPPER_CASE ones by itself.
        min_delta: the threshold that is written; `noise` says what it rests on.
    """

    root: Path
    scripts: Sequence[Script]
    facts: ScriptFacts
    command: tuple[str, ...]
    documented: Sequence[tuple[str, ...]]
    cwd: str
    metric: PrintedMetric | None
    take: str
    seconds: float
    data: Sequence[UntrackedEntry] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    min_delta: float = 0.0
    noise: str = ""

    @property
    def artifacts(self) -> list[str]:
        return [self.facts.path, *self.facts.config_scripts, *self.facts.configs]

    def sources(self) -> dict[str, str]:
        """Return path -> text of the artifacts that are Python."""
        return {
            path: (self.root / path).read_text(encoding="utf-8", errors="replace")
            for path in self.artifacts
            if path.endswith(".py")
        }

    def task_text(self) -> str:
        """Return the task file, with comments."""
        metric = self.metric or PrintedMetric("val_loss", (), 0, "minimize")
        others = [each for each in self.facts.metrics if is_likely_objective(each)]
        words = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.facts.path).stem.lower()).strip("-")
        page = templates(Path(__file__).parent / "templates").get_template("task.yaml.j2")
        text = page.render(
            facts=self.facts,
            id=words[:60].strip("-") or "train",
            description=f"{metric.name} of {self.facts.path}",
            artifacts=self.artifacts,
            command=list(self.command),
            alternatives=[list(words) for words in self.documented[:SHOWN]],
            cwd=self.cwd,
            seconds=f"{self.seconds:g}",
            data=self.data,
            take=self.take,
            metric=metric,
            metric_line=self.facts.lines.get(metric.name, ""),
            others=[each for each in others if each.name != metric.name][:SHOWN],
            noise=self.noise,
            min_delta=f"{self.min_delta:g}",
            knobs={name: _dumped(knob) for name, knob in self.knobs.items()},
            values=self.constants,
        )
        return text.rstrip() + "\n"

    def corrected(self, log: str, *, several: bool = False) -> Findings | None:
        """Return the findings with the metric as `log` has it; None where that changes nothing.

        Args:
            several: whether the log was found to hold different values of the metric.
        """
        printed = find_metrics(log)
        known = self.metric.name if self.metric is not None else ""
        chosen = next((each for each in printed if each.name == known), _likeliest(printed))
        if chosen is None:
            return None
        is_same = several and chosen.name == known
        take = "last" if is_same or len(chosen.values) > 1 else self.take
        if (chosen.name, take) == (known, self.take):
            return None
        return replace(self, metric=chosen, take=take)


def _dumped(knob: Knob) -> str:
    """Return a knob as it is written in a task file."""
    given = {"type": knob.type, **knob.model_dump(exclude_none=True, exclude_defaults=True)}
    words = (
        f"{name}: {f'{value:.6g}' if type(value) is float else json.dumps(value)}"
        for name, value in given.items()
    )
    return f"{{{', '.join(words)}}}"


class Noise(NamedTuple):
    """How far two runs of one code lie apart, and the smallest gain that can be told from that."""

    difference: float
    smallest_gain: float


def noise_of(first: float, second: float) -> Noise:
    """Return the noise of a pair of runs; a gain counts from twice their difference on."""
    difference = abs(first - second)
    return Noise(difference, _rounded_up(2 * difference))


def _rounded_up(value: float) -> float:
    """Return the next number with two digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


def examine(repository: Repository, folder: Path, choices: Choices) -> Findings:
    """Return what a repository says about its training. Nothing is run or imported.

    Args:
        folder: where the user is; scripts are looked for in it.

    Raises:
        TaskError: no file looks like a training, or none of the name that was given.
    """
    root, tracked = repository.root, repository.tracked_files()
    below = os.path.relpath(folder.resolve(), root.resolve())
    prefix = "" if below == "." or below.startswith("..") else f"{below}/"
    inside = [path for path in tracked if path.startswith(prefix)]
    scripts = find_scripts(root, inside)
    words = shlex.split(choices.command) if choices.command else []
    path = _chosen(
        choices.script or _script_in(words, prefix, tracked), scripts, inside, repository
    )
    if not (path.endswith(".py") or words):
        raise UsageError(
            f"{path} is no Python file, so it is not known how it is started",
            hint=f"say it: --command 'bash {path}'",
        )
    documented = documented_commands(root, path, tracked)
    arguments = _arguments_in(words, path) if words else (documented[0] if documented else ())
    facts = read_script(root, path, tracked, arguments)
    cwd = prefix.rstrip("/") or _folder_of(facts, root)
    python = python_words(root)
    start = (*python, os.path.relpath(path, cwd))
    metric = _likeliest(facts.metrics)
    if choices.metric is not None:
        named = (each for each in facts.metrics if each.name == choices.metric)
        metric = next(named, PrintedMetric(choices.metric, (), 0, direction_of(choices.metric)))
    gaps = [*_argument_gaps(facts, arguments), *_package_gaps(facts, python, root)]
    return Findings(
        root=root,
        scripts=scripts,
        facts=facts,
        command=tuple(words) or (*start, *arguments),
        documented=[(*start, *other) for other in documented if other != arguments],
        cwd=cwd,
        metric=metric,
        take="last" if metric is not None and metric.name in facts.repeated else "only",
        seconds=choices.seconds,
        data=list(_data(root, facts, cwd)),
        constants=_constants(root, [path, *facts.config_scripts], arguments),
        gaps=gaps,
    )


def direction_of(metric: str) -> Any:
    """Return whether a lower or a higher value is better, as far as a name tells."""
    printed = find_metrics(f"{metric}: 1.5\n")
    return printed[0].direction if printed else "minimize"


def _likeliest(metrics: Sequence[PrintedMetric]) -> PrintedMetric | None:
    """Return the objective: of held-out text before others, of training last, a loss before an
    accuracy of the same kind."""
    likely = [metric for metric in metrics if is_likely_objective(metric)]
    if not likely:
        return None

    def rank(metric: PrintedMetric) -> tuple[bool, bool]:
        name = metric.name.lower()
        return not re.search(r"val|eval|test|dev", name), "train" in name

    best = min(map(rank, likely))
    alike = [metric for metric in likely if rank(metric) == best]
    return next((metric for metric in alike if metric.direction == "minimize"), alike[0])


# ── the script and its command ──────────────────────────────────────────────────────────────


def _chosen(
    named: str | None, scripts: Sequence[Script], inside: Collection[str], repository: Repository
) -> str:
    if named is None and scripts:
        return scripts[0].path
    if named is not None:
        path = os.path.relpath(os.path.abspath(named), repository.root)
        path = named.removeprefix("./") if path not in inside else path
        if path in inside:
            return path
        if (repository.root / path).is_file():
            raise TaskError(
                f"{path} is in no commit, and a run has the files of one",
                hint=f"commit it first: git add {shlex.quote(path)}; git commit -m 'the script'",
            )
        raise UsageError(
            f"there is no tracked script {named!r}{did_you_mean(named, list(inside))}",
            hint="name one of: " + ", ".join([script.path for script in scripts][:SHOWN])
            if scripts
            else "name a file that git tracks",
        )
    new = [
        path
        for path in untracked(repository.root, leave_out=Layout(repository.root).generated_folders)
        if path.endswith(".py")
    ]
    if new:
        raise TaskError(
            f"no tracked file looks like a training, and {', '.join(new[:SHOWN])} is in no commit",
            hint=f"commit the script first: git add {shlex.join(new[:SHOWN])}; git commit -m start",
        )
    raise TaskError(
        f"no Python file of {repository.root} looks like a training",
        hint="name it: --script FILE, or --command 'PROGRAM ...'",
    )


def _script_in(words: Sequence[str], prefix: str, tracked: Collection[str]) -> str | None:
    """Return the tracked script of a command: a Python file, or else the first file in it."""
    named = (
        path
        for word in words
        for path in (word.removeprefix("./"), prefix + word.removeprefix("./"))
        if path in tracked
    )
    return min(named, key=lambda path: not path.endswith(".py"), default=None)


def _arguments_in(words: Sequence[str], path: str) -> tuple[str, ...]:
    """Return the words after the script in a command."""
    name = PurePosixPath(path).name
    at = next((i for i, word in enumerate(words) if PurePosixPath(word).name == name), len(words))
    return tuple(words[at + 1 :])


def python_words(root: Path) -> tuple[str, ...]:
    """Return how this repository starts Python: with uv, its `.venv`, the active environment, or
    the Python that runs this."""
    if (root / "uv.lock").is_file() and shutil.which("uv"):
        return ("uv", "run")
    if (root / ".venv/bin/python").exists():
        return (".venv/bin/python",)
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        active = os.environ.get(name)
        if active and Path(active).resolve() != Path(sys.prefix).resolve():
            python = Path(active, "bin", "python")
            if python.exists():
                return (str(python),)
    return ("python",)


def _folder_of(facts: ScriptFacts, root: Path) -> str:
    """Return the folder that the script's paths are seen from: the top, or its own."""
    own = PurePosixPath(facts.path).parent.as_posix()
    paths = [path for path in facts.paths if "/" in path or "." in path]
    here, there = (sum((root / folder / path).exists() for path in paths) for folder in (".", own))
    return own if there > here else "."


def _argument_gaps(facts: ScriptFacts, given: Sequence[str]) -> Iterator[Gap]:
    words = " ".join(given)
    positions = [word for word in given if not word.startswith("-")]
    lacking = [
        argument.name
        for argument in facts.arguments
        if argument.required
        and not (argument.name in words if argument.name.startswith("-") else positions)
    ]
    if lacking:
        yield Gap(
            f"{facts.path} cannot start without {', '.join(lacking)}",
            f"python orchestrator.py init --command 'python {facts.path}"
            f" {' '.join(name if name.startswith('-') else name.upper() for name in lacking)} ...'",
            is_choice=True,
        )


def _package_gaps(facts: ScriptFacts, python: Sequence[str], root: Path) -> Iterator[Gap]:
    """Yield what the script imports first and its Python lacks. Only that Python is asked."""
    if python[0] == "uv" or not facts.packages:
        return
    program = str(root / python[0]) if python[0].startswith(".venv") else python[0]
    program = sys.executable if program == "python" else program
    try:
        lacking = absent_modules(program, facts.packages)
    except LaunchError as error:
        yield Gap(error.problem, "make the environment of the project")
        return
    if lacking:
        names = [_DISTRIBUTIONS.get(name, name) for name in lacking]
        yield Gap(
            f"{program} has no {', '.join(lacking)}",
            f"{program} -m pip install {' '.join(names)}",
        )


_MISSING_FILE = re.compile(r"FileNotFoundError: .*?'([^'\n]+)'")
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


def gaps_in_log(log: str, root: Path, found: Findings | None) -> Iterator[Gap]:
    """Yield what the log of a failed run says is missing."""
    for path in dict.fromkeys(_MISSING_FILE.findall(log)):
        relative = path if not os.path.isabs(path) else ""
        cwd = found.cwd if found else "."
        here = os.path.normpath(os.path.join(cwd, relative))
        if relative and (root / here).exists():
            entry = UntrackedEntry(here, 0, False)
            yield Gap(
                f"the run needs {path}, which is here and which git does not track",
                f"run: {{include: ['{entry.pattern}']}} in task.yaml",
            )
        else:
            yield Gap(f"there is no {path}", "make it, as the pages of this repository say")
    for module in dict.fromkeys(_MISSING_MODULE.findall(log)):
        name = module.partition(".")[0]
        python = found.command[0] if found else "python"
        if python == "python":
            python = sys.executable
        name = _DISTRIBUTIONS.get(name, name)
        yield Gap(f"the run has no module {module}", f"{python} -m pip install {name}")


# ── data and constants ──────────────────────────────────────────────────────────────────────


def _data(root: Path, facts: ScriptFacts, cwd: str) -> Iterator[UntrackedEntry]:
    """Yield the untracked files and folders that texts of the script name."""
    listed = [
        path
        for path in untracked(root, leave_out=Layout(root).generated_folders)
        if not is_made_by_tools(root, path)
    ]
    named: dict[str, set[str]] = {}
    for text in facts.paths:
        for folder in {".", cwd}:
            path = os.path.normpath(os.path.join(folder, re.split(r"[*?\[{]", text)[0]))
            first = path.partition("/")[0]
            if first.startswith(".") or first.lower() in _WRITTEN:
                continue
            if matched := set(_named_by(root, path, listed)):
                named.setdefault(path, set()).update(matched)
    exact = {
        name
        for path, names in named.items()
        for name in names
        if not any(other.startswith(f"{path}/") for other in named)
    }
    deadline = time.monotonic() + LOOK_S
    for path in sorted(exact):
        yield measured(root, path, deadline)


def _named_by(root: Path, path: str, listed: Sequence[str]) -> Iterator[str]:
    """Yield what of the untracked `listed` a path names: itself, a part of one, or all below it."""
    for entry in listed:
        bare = entry.rstrip("/")
        if bare == path or bare.startswith(f"{path}/"):
            yield entry
        elif entry.endswith("/") and path.startswith(entry) and (root / path).exists():
            yield f"{path}/" if (root / path).is_dir() else path


def _constants(root: Path, paths: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the constants at the top of scripts that none of the others and no argument sets."""
    found: dict[str, Any] = {}
    homes: Counter[str] = Counter()
    for path in paths:
        try:
            constants = read_constants((root / path).read_bytes(), path)
        except (OSError, ChangeError):
            continue
        found.update(constants)
        homes.update(constants.keys())
    given = {word.lstrip("-").partition("=")[0] for word in arguments if "=" in word}
    kinds = (bool, int, float, str)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, kinds)
        and homes[name] == 1
        and name not in given
        and not name.startswith("_")
        and name.lower() != "seed"
    }
