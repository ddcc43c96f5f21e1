"""The first task file of a repository: what its training script, its pages and its folders say.

`examine` looks and runs nothing. A baseline corrects what it took for the metric, and says how much
two runs of one code differ.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from autohypothesis.engine.constants import option_name, read_constants
from autohypothesis.engine.environment import absent_modules, resolved
from autohypothesis.engine.foreign_script import (
    Script,
    ScriptFacts,
    documented_commands,
    find_scripts,
    read_script,
)
from autohypothesis.engine.metric_lines import (
    PrintedMetric,
    direction_of,
    find_metrics,
    is_likely_objective,
)
from autohypothesis.engine.shim import FOREIGN_DEADLINE_S
from autohypothesis.engine.task import Knob
from autohypothesis.engine.untracked_files import UntrackedEntry, is_made_by_tools, measured
from autohypothesis.errors import ChangeError, LaunchError, TaskError, UsageError
from autohypothesis.plain import some_of, templates
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
        take: which value of a run is its score; empty where it prints one. `printed` says what the
            baseline printed.
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
    seconds: float
    data: Sequence[UntrackedEntry] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    take: str = "last"
    printed: str = ""
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
        metric = self.metric or PrintedMetric("val_loss", (), "minimize")
        words = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.facts.path).stem.lower())
        likely = [each.name for each in self.facts.metrics if is_likely_objective(each)]
        page = templates(Path(__file__).parent / "templates").get_template("task.yaml.j2")
        text = page.render(
            found=self,
            facts=self.facts,
            id=words[:60].strip("-") or "train",
            metric=metric,
            others=[name for name in likely if name != metric.name],
            knobs={name: _dumped(knob) for name, knob in self.knobs.items()},
            shown=SHOWN,
        )
        return text.rstrip() + "\n"

    def corrected(self, log: str) -> Findings | None:
        """Return the findings with the metric that `log` has; None where that changes nothing."""
        printed = find_metrics(log)
        metric = _likeliest(printed, self.facts.held_out)
        if metric is None or (self.metric and self.metric.name in [each.name for each in printed]):
            return None
        return replace(self, metric=metric, facts=replace(self.facts, metrics=printed))

    def is_several(self, log: str) -> bool:
        """Return whether `log` has the metric under several names only: `accuracy (top-1)`."""
        begin = f"{self.metric.name} (" if self.metric else ""
        return bool(begin) and any(each.name.startswith(begin) for each in find_metrics(log))

    def with_values(self, count: int, values: Sequence[float | None]) -> Findings:
        """Return the findings with what a baseline printed: the metric `count` times, with these
        different `values`, the last one last."""
        known = [value for value in values if value is not None]
        if count < 2 or self.metric is None or not known:
            return replace(self, take="")
        if not self.take:  # the same value each time
            return self
        best = (max if self.metric.direction == "maximize" else min)(known)
        words = f"`last` is {known[-1]:.6g}, `best` {best:.6g}"
        return replace(self, printed=f"The baseline printed it {count} times: {words}.")


def _dumped(knob: Knob) -> str:
    """Return a knob as it is written in a task file."""
    given = {"type": knob.type, **knob.model_dump(exclude_none=True, exclude_defaults=True)}
    words = (
        f"{name}: {f'{value:.6g}' if type(value) is float else json.dumps(value)}"
        for name, value in given.items()
    )
    return f"{{{', '.join(words)}}}"


def smallest_gain(difference: float) -> float:
    """Return the smallest gain that counts where two runs of one code differ by `difference`: twice
    that, rounded up to two digits."""
    rounding = Context(prec=2, rounding=ROUND_CEILING)
    return float(rounding.create_decimal(f"{2 * difference:.9g}"))


def examine(
    repository: Repository,
    folder: Path,
    *,
    script: str | None = None,
    command: str | None = None,
    metric: str | None = None,
    seconds: float = FOREIGN_DEADLINE_S,
) -> Findings:
    """Return what a repository says about its training. Nothing is run or imported.

    Args:
        folder: where the user is; scripts are looked for in it.
        script, command, metric: what the user said; None is found.

    Raises:
        TaskError: no file looks like a training, or none of the name that was given.
    """
    root, tracked = repository.root, repository.tracked_files()
    below = os.path.relpath(folder.resolve(), root.resolve())
    prefix = "" if below == "." or below.startswith("..") else f"{below}/"
    inside = [path for path in tracked if path.startswith(prefix)]
    scripts = find_scripts(root, inside)
    words = shlex.split(command or "")
    script = script or _script_in(words, prefix, tracked)
    path = _chosen(script, scripts, inside, repository)
    if not (path.endswith(".py") or words):
        raise UsageError(
            f"{path} is no Python file, so it is not known how it is started",
            hint=f"say it: --command 'bash {path}'",
        )
    documented = documented_commands(root, path, tracked)
    arguments = _arguments_in(words, path) if words else next(iter(documented), ())
    facts = read_script(root, path, tracked, arguments)
    cwd = prefix.rstrip("/") or _folder_of(facts, root)
    python = python_words(root)
    start = (*python, os.path.relpath(path, cwd))
    objective = _likeliest(facts.metrics, facts.held_out)
    if metric is not None:
        objective = PrintedMetric(metric, (), direction_of(metric))
    return Findings(
        root=root,
        scripts=scripts,
        facts=facts,
        command=tuple(words) or (*start, *arguments),
        documented=[(*start, *other) for other in documented if other != arguments],
        cwd=cwd,
        metric=objective,
        take="" if objective in facts.metrics and objective.name not in facts.repeated else "last",
        seconds=seconds,
        data=list(_data(root, facts, cwd)),
        constants=_constants(root, [path, *facts.config_scripts], arguments),
        gaps=[*_argument_gaps(facts, arguments), *_package_gaps(facts, python, root)],
    )


def _likeliest(metrics: Sequence[PrintedMetric], held_out: Collection[str]) -> PrintedMetric | None:
    """Return the objective: of held-out data before others, of training last, a loss before an
    accuracy of the same kind.

    Args:
        held_out: names that are of such data without saying so.
    """

    def rank(metric: PrintedMetric) -> tuple[bool, bool, bool]:
        name = metric.name.lower()
        is_held_out = metric.name in held_out or bool(re.search(r"val|eval|test|dev", name))
        return not is_held_out, "train" in name, metric.direction != "minimize"

    return min(filter(is_likely_objective, metrics), key=rank, default=None)


# ── the script and its command ──────────────────────────────────────────────────────────────


def _chosen(
    named: str | None, scripts: Sequence[Script], inside: Collection[str], repository: Repository
) -> str:
    """Return the tracked path of the script that the user named, or of the likeliest one."""
    root = repository.root
    if named is not None:
        path = os.path.relpath(os.path.abspath(named), root)
        path = named.removeprefix("./") if path not in inside else path
        if path in inside:
            if broken := list(_broken(root, [path])):
                raise TaskError(broken[0], hint="correct that line, and commit it")
            return path
        if not (root / path).is_file():
            raise UsageError(
                f"there is no tracked script {named!r}{did_you_mean(named, list(inside))}",
                hint="name one of: "
                + (", ".join(each.path for each in scripts[:SHOWN]) or "the files that git tracks"),
            )
        problem, new = f"{path} is in no commit, and a run has the files of one", [path]
    elif scripts:
        return scripts[0].path
    else:
        problem = f"no tracked Python file of {root} looks like a training"
        if broken := list(_broken(root, inside)):
            hint = "correct that and commit it, or name the training: --script FILE"
            raise TaskError(f"{problem}; {some_of(broken)}", hint=hint)
        new = [path for path in _untracked(root) if path.endswith(".py")][:SHOWN]
        if not new:
            raise TaskError(problem, hint="name it: --script FILE, or --command 'PROGRAM ...'")
        problem += f", and {', '.join(new)} is in no commit"
    raise TaskError(
        problem, hint=f"commit it first: git add {shlex.join(new)}; git commit -m 'the script'"
    )


def _broken(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with each Python file that does not parse: its name, line and why."""
    for path in paths:
        if path.endswith(".py"):
            try:
                read_constants((root / path).read_bytes(), path)
            except ChangeError as error:
                yield error.problem
            except OSError:
                continue


def _untracked(root: Path) -> list[str]:
    return list(untracked(root, leave_out=Layout(root).generated_folders))


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
        active = Path(os.environ.get(name) or sys.prefix)
        python = active / "bin/python"
        if active.resolve() != Path(sys.prefix).resolve() and python.exists():
            return (str(python),)
    return ("python",)


def _folder_of(facts: ScriptFacts, root: Path) -> str:
    """Return the folder that the script's paths are seen from: the top, or its own."""
    own = PurePosixPath(facts.path).parent.as_posix()
    paths = [path for path in facts.paths if "/" in path or "." in path]
    here, there = (sum((root / folder / path).exists() for path in paths) for folder in (".", own))
    return own if there > here else "."


def _argument_gaps(facts: ScriptFacts, given: Sequence[str]) -> Iterator[Gap]:
    positions = [word for word in given if not word.startswith("-")]
    lacking = [
        name
        for name, _, required in facts.arguments
        if required and not (name in " ".join(given) if name.startswith("-") else positions)
    ]
    if lacking:
        words = " ".join(name if name.startswith("-") else name.upper() for name in lacking)
        yield Gap(
            f"{facts.path} cannot start without {', '.join(lacking)}",
            f"python orchestrator.py init --command 'python {facts.path} {words} ...'",
            is_choice=True,
        )


def _package_gaps(facts: ScriptFacts, python: Sequence[str], root: Path) -> Iterator[Gap]:
    """Yield what the script imports first and its Python lacks. Only that Python is asked."""
    if python[0] == "uv" or not facts.packages:
        return
    program = resolved(python, root)[0]
    try:
        lacking = absent_modules(program, facts.packages)
    except LaunchError as error:
        yield Gap(error.problem, "make the environment of the project")
        return
    if lacking:
        yield Gap(f"{program} has no {', '.join(lacking)}", _installing(program, lacking))


def _installing(python: str, modules: Iterable[str]) -> str:
    names = (module.partition(".")[0] for module in modules)
    installer = "uv add" if python == "uv" else f"{python} -m pip install"
    return f"{installer} {' '.join(_DISTRIBUTIONS.get(name, name) for name in names)}"


_MISSING_FILE = re.compile(r"FileNotFoundError: .*?'([^'\n]+)'")
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


def gaps_in_log(log: str, root: Path, found: Findings | None) -> Iterator[Gap]:
    """Yield what the log of a failed run says is missing."""
    cwd, command = (found.cwd, found.command) if found else (".", ("python",))
    for path in dict.fromkeys(_MISSING_FILE.findall(log)):
        here = os.path.normpath(os.path.join(cwd, path))
        if not os.path.isabs(path) and (root / here).exists():
            yield Gap(
                f"the run needs {path}, which is here and which git does not track",
                f"run: {{include: ['{UntrackedEntry(here, 0, False).pattern}']}} in task.yaml",
            )
        else:
            yield Gap(f"there is no {path}", "make it, as the pages of this repository say")
    for module in dict.fromkeys(_MISSING_MODULE.findall(log)):
        remedy = _installing(resolved(command, root)[0], [module])
        yield Gap(f"the run has no module {module}", remedy)


# ── data and constants ──────────────────────────────────────────────────────────────────────


def _data(root: Path, facts: ScriptFacts, cwd: str) -> Iterator[UntrackedEntry]:
    """Yield the untracked files and folders that texts of the script name."""
    listed = [path for path in _untracked(root) if not is_made_by_tools(root, path)]
    named: dict[str, set[str]] = {}
    for text in facts.paths:
        for folder in {".", cwd}:
            path = os.path.normpath(os.path.join(folder, re.split(r"[*?\[{]", text)[0]))
            first = path.partition("/")[0]
            if not first.startswith(".") and first.lower() not in _WRITTEN:
                named[path] = set(_named_by(root, path, listed))
    matched = [path for path, names in named.items() if names]
    exact = {
        name
        for path in matched
        for name in named[path]
        if not any(other.startswith(f"{path}/") for other in matched)
    }
    deadline = time.monotonic() + LOOK_S
    for path in sorted(exact):
        yield measured(root, path, deadline)


def _named_by(root: Path, path: str, listed: Sequence[str]) -> Iterator[str]:
    """Yield what of the untracked `listed` a path names: itself, a part of one, or all below it."""
    for entry in listed:
        if entry.rstrip("/") == path or entry.startswith(f"{path}/"):
            yield entry
        elif entry.endswith("/") and path.startswith(entry) and (root / path).exists():
            yield f"{path}/" if (root / path).is_dir() else path


def _constants(root: Path, paths: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the constants at the top of scripts that none of the others and no argument sets."""
    found: dict[str, Any] = {}
    left_out = {option_name(word) for word in arguments if "=" in word or word.startswith("--")}
    for path in paths:
        with suppress(OSError, ChangeError):
            constants = read_constants((root / path).read_bytes(), path)
            left_out |= found.keys() & constants.keys()
            found |= constants
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (bool, int, float, str))
        and name not in left_out
        and not name.startswith("_")
        and name.lower() != "seed"
    }
