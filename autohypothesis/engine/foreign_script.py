"""What a training script of another project says about itself: read from its text, never imported.

Which file trains, the metrics that it prints, its arguments, and the paths that it reads. All of
it is a guess that a person and a run correct.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from autohypothesis.engine.constant_texts import assigned_texts, may_be_path, text_of
from autohypothesis.engine.metric_lines import (
    MetricValues,
    PrintedMetric,
    find_metrics,
    is_likely_objective,
)
from autohypothesis.records.files import read_text

MAX_SCRIPTS = 1_000
MAX_BYTES = 512 << 10
CONFIG_SUFFIXES = (".yaml", ".yml", ".json", ".toml")
_TRAINS = re.compile(r"(?:^|[_-])(?:pre|fine)?_?-?(?:train|finetune|tune|fit)(?:er|ing)?(?:$|[_-])")
_OTHER = re.compile(
    r"(?:^|[_-])(?:eval\w*|test\w*|infer\w*|predict|sample|generate|demo|plot\w*|prepare|download"
    r"|preprocess|convert|export|serve|setup|conftest|config\w*|utils?|bench\w*)(?:$|[_-])"
)
_MAY_START = re.compile(r"__main__|^(?:for|while)\b|^[A-Za-z_][\w.]*\(", re.MULTILINE)
"""In the text of every file that can be started: most need no parsing."""
_USUAL = ("main", "run")
_ASIDE = {"test", "tests", "docs", "doc", "notebooks", "benchmarks", "third_party", "vendor"}
_PAGE = re.compile(r"\.(?:md|rst|sh|txt)$|(?:^|/)(?:makefile|justfile)$", re.IGNORECASE)
_PRINTERS = {"print", "info", "warning", "debug", "log", "write", "echo", "log_dict", "log_metrics"}
_NO_PRINTERS = ("wandb", "mlflow", "writer", "np", "math", "torch")
_PERCENT = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[diouxXeEfFgGcrs]")
_HELD_OUT = re.compile(r"\b(?:val|valid(?:ation)?|eval(?:uation)?|test|dev)\b", re.IGNORECASE)
_BRACES = re.compile(r"\{[^{}]*\}")
_SEEDS = ("manual_seed", "seed_everything", "set_seed", "seed", "default_rng")
_READS_SEED = re.compile(r"environ[^\n]{0,12}['\"]SEED['\"]|getenv\(['\"]SEED")
NUMBER = "1.5"
"""What stands for every number that a script computes, when a line of its log is imagined."""


class Script(NamedTuple):
    """A file that may be the training, with why; a higher score is likelier."""

    path: str
    score: int
    reasons: tuple[str, ...]


class Argument(NamedTuple):
    """An argument of a script. `name` is as it is typed: `--lr`, or `config` for a position."""

    name: str
    default: Any = None
    required: bool = False

    def __str__(self) -> str:
        return self.name if self.default is None else f"{self.name} {self.default}"


@dataclass(frozen=True)
class ScriptFacts:
    """What one script, and the modules of its repository that it imports, say.

    Attributes:
        modules: those modules, as paths.
        packages: modules from elsewhere that it cannot start without.
        metrics: what it prints, the likeliest objective first.
        held_out: names of those that only lines about held-out data print: `Test set: loss 0.3`.
        lines: name of a metric -> `train.py:41`.
        repeated: those that a run may print more than once.
        arguments: of the script itself.
        paths: texts that may be paths, from the folder where it runs.
        configs: files with settings that it or its arguments name.
        config_scripts: the same in Python; they replace constants of the script.
        reads_seed: whether it reads the variable SEED.
        seed_line: where it begins its random numbers: `train.py:12`; empty where it does not.
    """

    path: str
    modules: list[str]
    packages: list[str]
    metrics: list[PrintedMetric]
    held_out: set[str]
    lines: dict[str, str]
    repeated: set[str]
    arguments: list[Argument]
    paths: set[str]
    configs: list[str]
    config_scripts: list[str]
    reads_seed: bool
    seed_line: str


# ── which script ────────────────────────────────────────────────────────────────────────────


def find_scripts(root: Path, tracked: Iterable[str]) -> list[Script]:
    """Return the tracked Python files that look like a training, the likeliest first."""
    paths = [path for path in tracked if path.endswith(".py")]
    trees = {
        path: tree
        for path in sorted(paths, key=lambda path: path.count("/"))[:MAX_SCRIPTS]
        if _MAY_START.search(_source(root, path))
        and (tree := _parsed(root, path))
        and _can_start(tree)
    }
    parts = {path for path in paths if path not in trees and _is_named(path)}
    rated = [script for path, tree in trees.items() if (script := _rated(path, tree, parts))]
    imported = {
        module
        for script in rated
        for module in _modules_of(script.path, trees[script.path], trees.keys())
    }
    ranked = (
        script._replace(score=script.score - 3 * (script.path in imported)) for script in rated
    )
    return sorted(ranked, key=lambda script: (-script.score, script.path))


def _can_start(tree: ast.Module) -> bool:
    """Return whether a file does more than define: it loops or calls at its top, or has a main."""
    for node in tree.body:
        match node:
            case ast.For() | ast.While() | ast.Expr(value=ast.Call()):
                return True
            case ast.If(test=test) if "__main__" in ast.unparse(test):
                return True
    return False


def _is_named(path: str) -> bool:
    return bool(_TRAINS.search(PurePosixPath(path).stem.lower()))


def _rated(path: str, tree: ast.Module, parts: Set[str]) -> Script | None:
    """Return a file that can be started with its score; None where nothing speaks of a training.

    Args:
        parts: files that are named as a training and cannot be started.
    """
    stem, folders = PurePosixPath(path).stem.lower(), set(path.lower().split("/")[:-1])
    is_other = bool(_OTHER.search(stem))
    begins = [] if is_other else list(_modules_of(path, tree, parts))
    called = set(map(_called, _calls(tree)))
    likely = [each.name for each in _metrics_of({path: tree})[0] if is_likely_objective(each)]
    training = [
        (4, "computes gradients", "backward" in called),
        (4, "calls fit", bool({"fit", "fit_transform", "cross_val_score"} & called)),
        (3, "has a Trainer", any(name.endswith("Trainer") for name in called)),
        (4, f"imports {', '.join(begins[:1])}", bool(begins)),
        (2, f"prints {', '.join(likely[:3])}", bool(likely)),
    ]
    is_named, is_aside = _is_named(path), bool(folders & _ASIDE)
    if not ((is_named and not is_aside) or any(holds for _, _, holds in training)):
        return None
    name = [(5, "is named as a training", is_named), (1, f"is named {stem}", stem in _USUAL)]
    holding = [(points, why) for points, why, holds in (*name, *training) if holds]
    score = sum(points for points, _ in holding)
    score -= 4 * is_other + 6 * is_aside + len(folders)
    return Script(path, score, tuple(why for _, why in holding))


# ── what it says ────────────────────────────────────────────────────────────────────────────


def read_script(
    root: Path, path: str, tracked: Collection[str], words: Sequence[str] = ()
) -> ScriptFacts:
    """Return what the script at `path` says, with the modules of the repository that it imports.

    Args:
        words: the arguments it will be started with; files with settings among them are read.
    """
    trees: dict[str, ast.Module] = {}
    known = {name for name in tracked if name.endswith(".py")}
    waiting = [path]
    while waiting and len(trees) < MAX_SCRIPTS:
        current = waiting.pop(0)
        if current not in trees and (tree := _parsed(root, current)) is not None:
            trees[current] = tree
            waiting += _modules_of(current, tree, known)
    arguments = list(_arguments(trees[path])) if path in trees else []
    metrics, lines, repeated, held_out = _metrics_of(trees)
    texts = {text for word in words for text in (word, word.partition("=")[2])}
    texts |= {text_of(node, {}) for tree in trees.values() for node in ast.walk(tree)}
    configs = sorted(_configs(texts, path) & set(tracked))
    values = (text for word in words for text in (word, word.partition("=")[2]))
    config_scripts = [text for text in values if text in known and text != path]
    names = {
        argument.name.lstrip("-").replace("-", "_"): argument.default
        for argument in arguments
        if isinstance(argument.default, str)
    }
    for config in config_scripts:
        if (tree := _parsed(root, config)) is not None:
            names |= assigned_texts(config, tree, {})
    for config in configs:
        for key, value in _flat(_settings_in(root, config)):
            names.setdefault(key, value)
            texts.add(value)
    for name, tree in trees.items():
        assigned = assigned_texts(name, tree, names)
        texts |= {text_of(node, assigned) for node in ast.walk(tree)}
    seeds = (
        f"{name}:{call.lineno}"
        for name, tree in trees.items()
        for call in _calls(tree)
        if _called(call) in _SEEDS
    )
    return ScriptFacts(
        path,
        modules=[name for name in trees if name != path],
        packages=sorted(_packages(trees.values(), known)),
        metrics=metrics,
        held_out=held_out,
        lines=lines,
        repeated=repeated,
        arguments=arguments,
        paths={text for text in texts if may_be_path(text)},
        configs=configs,
        config_scripts=config_scripts,
        reads_seed=any(_READS_SEED.search(_source(root, name)) for name in trees),
        seed_line=next(seeds, ""),
    )


def documented_commands(root: Path, script: str, tracked: Iterable[str]) -> list[tuple[str, ...]]:
    """Return how pages and shell scripts of the repository start `script`: its arguments each
    time, those of the most frequent first."""
    seen: Counter[tuple[str, ...]] = Counter()
    module = script.removesuffix(".py").replace("/", ".")
    start = re.compile(
        rf"(?:python3?|uv run|accelerate launch)\s+(?:-m\s+{re.escape(module)}|(?:\./)?"
        rf"{re.escape(script)})(?![\w/])([^|>&;#`\n]*)"
    )
    for path in filter(_PAGE.search, tracked):
        for match in start.finditer(_source(root, path).replace("\\\n", " ")):
            if not re.search(r"[$<{}*]|\.\.\.", match[1]):
                with suppress(ValueError):
                    seen[tuple(shlex.split(match[1]))] += 1
    return [words for words, _ in seen.most_common()]


def _modules_of(path: str, tree: ast.Module, known: Set[str]) -> Iterator[str]:
    """Yield the files of the repository that a file imports."""
    folder = PurePosixPath(path).parent
    for node in ast.walk(tree):
        places = [folder, PurePosixPath(), PurePosixPath("src")]
        match node:
            case ast.Import(names=aliases):
                wanted = [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = [module] if module else []
                wanted = [*base, *(".".join([*base, alias.name]) for alias in aliases)]
                if level:
                    places = [folder, *folder.parents][level - 1 : level]
            case _:
                continue
        for name in wanted:
            for place in places:
                inside = (place / name.replace(".", "/")).as_posix()
                yield from sorted(known & {f"{inside}.py", f"{inside}/__init__.py"})


def _packages(trees: Iterable[ast.Module], known: Iterable[str]) -> set[str]:
    """Return what is imported at the top of the files, outside of a `try`, from elsewhere."""
    names: set[str] = set()
    for node in (node for tree in trees for node in tree.body):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module)
    local = {part for name in known for part in PurePosixPath(name).with_suffix("").parts}
    return {name.partition(".")[0] for name in names} - local


# ── metrics ─────────────────────────────────────────────────────────────────────────────────


def _metrics_of(
    trees: Mapping[str, ast.Module],
) -> tuple[list[PrintedMetric], dict[str, str], set[str], set[str]]:
    """Return the metrics that files print, where, those that a run may print more than once, and
    those that are printed of held-out data only.

    Every call that prints becomes the line that it would print, with a number for each value, and
    is read as a log is.
    """
    lines: dict[str, str] = {}
    printed: list[tuple[str, str]] = []
    repeated: set[str] = set()
    held_out, others = set[str](), set[str]()
    for path, tree in trees.items():
        again = _calls_that_may_repeat(tree)
        for call in sorted(_calls(tree), key=lambda call: (call.lineno, call.col_offset)):
            if text := _line_of(call):
                printed.append((text, f"{path}:{call.lineno}"))
                names = {metric.name for metric in find_metrics(text)}
                about = _HELD_OUT.split(text, maxsplit=1)[1:]
                behind = {metric.name for part in about for metric in find_metrics(part)} & names
                held_out |= behind
                others |= names - behind
                repeated |= names if id(call) in again else set()
                for name in names:
                    lines.setdefault(name, printed[-1][1])
    metrics = find_metrics("\n".join(text for text, _ in printed))
    for metric in metrics:  # `accuracy (top-5)` has this name only because of other lines
        if metric.name not in lines:
            lines[metric.name] = next(line for text, line in printed if metric.name in text)
    texts = [text for text, _ in printed]
    repeated |= {each.name for each in metrics if _is_printed_twice(each, texts)}
    return metrics, lines, repeated, held_out - others


def _is_printed_twice(metric: PrintedMetric, lines: Iterable[str]) -> bool:
    """Return whether several lines have a loss or a score; of what else there is, False."""
    found = MetricValues(metric.name)
    for line in lines if is_likely_objective(metric) else ():
        found.take(line)
    return found.count > 1


def _calls_that_may_repeat(tree: ast.Module) -> set[int]:
    """Return the `id` of the calls in loops, and in functions that are not the `main` of a file."""
    return {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, (ast.For, ast.AsyncFor, ast.While))
        or (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "main")
        for call in _calls(node)
    }


def _line_of(call: ast.Call) -> str:
    """Return what a call prints, imagined."""
    name, words = _called(call), _words_of(call)
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name == "set_postfix":
        return " ".join(f"{word}={NUMBER}" for word in words)
    if name == "evaluate" and owner and not call.args:
        return f"eval_loss: {NUMBER}"
    if name == "fit" and {"validation_data", "validation_split"} & set(words):
        return f"val_loss: {NUMBER}"
    if name not in _PRINTERS or not call.args or owner.split(".")[0] in _NO_PRINTERS:
        return ""
    first, *rest = map(_imagined, call.args)
    if owner == "self" and name == "log":
        return f"{first}: {NUMBER}"
    if rest and _PERCENT.search(first):
        return _PERCENT.sub(NUMBER, first)
    return " ".join([first, *rest])


def _imagined(node: ast.expr) -> str:
    """Return what an expression looks like when it is printed."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_imagined, parts))
        case ast.BinOp(left=left, op=ast.Mod()):
            return _PERCENT.sub(NUMBER, _imagined(left))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            words = _imagined(left), _imagined(right)
            return NUMBER if words == (NUMBER, NUMBER) else "".join(words)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _BRACES.sub(NUMBER, _imagined(value))
        case ast.Call(func=ast.Attribute(attr="dumps"), args=[value, *_]):
            return _imagined(value)
        case ast.Dict(keys=keys):
            return ", ".join(f"'{name}': {NUMBER}" for key in keys if (name := text_of(key, {})))
    return NUMBER


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _words_of(call: ast.Call) -> dict[str, ast.expr]:
    """Return the keyword arguments of a call."""
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


# ── arguments and settings ──────────────────────────────────────────────────────────────────


def _arguments(tree: ast.Module) -> Iterator[Argument]:
    """Yield the arguments of argparse, click, absl, and of dataclasses that a parser is given."""
    for call in _calls(tree):
        name, words = _called(call), _words_of(call)
        names = [text for node in call.args if (text := text_of(node, {}))]
        if name in ("add_argument", "option", "argument") and names:
            typed = max(names, key=lambda each: each.startswith("--"))
            required = _literal(words.get("required"))
            if not typed.startswith("-") and required is None:
                required = "default" not in words and _literal(words.get("nargs")) not in ("?", "*")
            yield Argument(typed, _literal(words.get("default")), bool(required))
        elif name.startswith("DEFINE_") and names:
            yield Argument(f"--{names[0]}", _literal(call.args[1] if len(call.args) > 1 else None))
    if "HfArgumentParser" not in map(_called, _calls(tree)):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "dataclass" in str(
            [ast.unparse(each) for each in node.decorator_list]
        ):
            for line in node.body:
                match line:
                    case ast.AnnAssign(target=ast.Name(id=name), value=value):
                        yield Argument(f"--{name}", _literal(value), value is None)


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return None


def _configs(texts: Iterable[str], script: str) -> set[str]:
    """Return the files with settings that texts name, seen from the top or from the script."""
    folders = (PurePosixPath(), PurePosixPath(script).parent)
    named = (text for text in texts if text.endswith(CONFIG_SUFFIXES) and len(text) < 200)
    return {(folder / text).as_posix() for text in named for folder in folders}


def _settings_in(root: Path, path: str) -> Any:
    text = _source(root, path)
    if path.endswith(".toml"):  # Python 3.10 has no tomllib
        return dict(re.findall(r"^\s*([\w-]+)\s*=\s*\"([^\"\n]*)\"", text, re.MULTILINE))
    try:
        return yaml.safe_load(text)  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of nested settings, each with the key that it has."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(inner, key)
    elif isinstance(value, str):
        yield key, value


# ── files ───────────────────────────────────────────────────────────────────────────────────


def _parsed(root: Path, path: str) -> ast.Module | None:
    try:
        return ast.parse(_source(root, path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _source(root: Path, path: str) -> str:
    return read_text(root / path, MAX_BYTES)
