"""What a training script of another project says about itself: read from its text, never imported.

Which file trains, the metrics that it prints, its arguments, and the paths that it reads. All of
it is a guess that a person and a run correct.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from autohypothesis.engine.constant_texts import TextFolder, assigned_texts, may_be_path
from autohypothesis.engine.metric_lines import PrintedMetric, find_metrics, is_likely_objective
from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_bytes

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
_ASIDE = {"test", "tests", "docs", "doc", "notebooks", "benchmarks", "third_party", "vendor"}
_PRINTERS = {"print", "info", "warning", "debug", "log", "write", "echo", "log_dict", "log_metrics"}
_SPEC = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[diouxXeEfFgGcrs]|\{[^{}]*\}")
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


@dataclass
class ScriptFacts:
    """What one script, and the modules of its repository that it imports, say.

    Attributes:
        modules: those modules, as paths.
        packages: modules from elsewhere that it cannot start without.
        metrics: what it prints, the likeliest objective first.
        lines: name of a metric -> `train.py:41`.
        repeated: metrics that are printed in a loop, or by a framework after each epoch.
        arguments: of the script itself.
        takes_settings: whether `--NAME=VALUE` replaces a constant of the script.
        paths: texts that may be paths, from the folder where it runs.
        configs: files with settings that it or its arguments name.
        config_scripts: the same in Python; they replace constants of the script.
        reads_seed: whether it reads the variable SEED.
        seed_line: where it begins its random numbers: `train.py:12`; empty where it does not.
    """

    path: str
    modules: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    metrics: list[PrintedMetric] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    arguments: list[Argument] = field(default_factory=list)
    takes_settings: bool = False
    paths: set[str] = field(default_factory=set)
    configs: list[str] = field(default_factory=list)
    config_scripts: list[str] = field(default_factory=list)
    reads_seed: bool = False
    seed_line: str = ""


# ── which script ────────────────────────────────────────────────────────────────────────────


def find_scripts(root: Path, tracked: Iterable[str]) -> list[Script]:
    """Return the tracked Python files that look like a training, the likeliest first."""
    paths = sorted(
        (path for path in tracked if path.endswith(".py")), key=lambda path: path.count("/")
    )
    trees = {
        path: tree
        for path in paths[:MAX_SCRIPTS]
        if _MAY_START.search(_source(root, path))
        and (tree := _parsed(root, path))
        and (_is_guarded(tree) or _acts_at_the_top(tree))
    }
    rated = [script for path, tree in trees.items() if (script := _rated(path, tree))]
    imported = {
        module for script in rated for module in _modules_of(script.path, trees[script.path], trees)
    }
    ranked = (
        script._replace(score=script.score - 3 * (script.path in imported)) for script in rated
    )
    return sorted(ranked, key=lambda script: (-script.score, script.path))


def _rated(path: str, tree: ast.Module) -> Script | None:
    """Return a file that can be started with its score; None where nothing speaks of a training."""
    stem, folders = PurePosixPath(path).stem.lower(), set(path.lower().split("/")[:-1])
    called = {name for call in _calls(tree) if (name := _called(call))}
    metrics, _, _ = _metrics_of(path, tree)
    likely = [metric.name for metric in metrics if is_likely_objective(metric)]
    training = [
        (4, "computes gradients", "backward" in called),
        (4, "calls fit", bool({"fit", "fit_transform", "cross_val_score"} & called)),
        (3, "has a Trainer", any(name.endswith("Trainer") for name in called)),
        (2, f"prints {', '.join(likely[:3])}", bool(likely)),
    ]
    named = bool(_TRAINS.search(stem)) and not folders & _ASIDE
    if not (named or any(holds for _, _, holds in training)):
        return None
    rest = [
        (5, "is named as a training", bool(_TRAINS.search(stem))),
        (2, "can be started", True),
        (1, f"is named {stem}", stem in ("main", "run")),
        (-4, "", bool(_OTHER.search(stem))),
        (-6, "", bool(folders & _ASIDE)),
        (-len(folders), "", True),
    ]
    holding = [(points, why) for points, why, holds in (*rest, *training) if holds]
    return Script(
        path, sum(points for points, _ in holding), tuple(why for _, why in holding if why)
    )


def _is_guarded(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
    )


def _acts_at_the_top(tree: ast.Module) -> bool:
    """Return whether importing the file would train: it loops, or calls something, at its top."""
    for node in tree.body:
        if isinstance(node, (ast.For, ast.While)):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return True
    return False


# ── what it says ────────────────────────────────────────────────────────────────────────────


def read_script(
    root: Path, path: str, tracked: Collection[str], words: Iterable[str] = ()
) -> ScriptFacts:
    """Return what the script at `path` says, with the modules of the repository that it imports.

    Args:
        words: the arguments it will be started with; files with settings among them are read.
    """
    words = list(words)
    facts, trees = ScriptFacts(path), dict[str, ast.Module]()
    known = {name for name in tracked if name.endswith(".py")}
    waiting = [path]
    while waiting and len(trees) < MAX_SCRIPTS:
        current = waiting.pop(0)
        if current in trees or (tree := _parsed(root, current)) is None:
            continue
        trees[current] = tree
        waiting += _modules_of(current, tree, known)
    facts.modules = [name for name in trees if name != path]
    facts.arguments = list(_arguments(trees[path])) if path in trees else []
    texts = {text for word in words for text in (word, word.partition("=")[2])}
    names: dict[str, str] = {
        argument.name.lstrip("-").replace("-", "_"): argument.default
        for argument in facts.arguments
        if isinstance(argument.default, str)
    }
    for tree in trees.values():
        texts |= {text for node in ast.walk(tree) if (text := _text_of(node))}
    facts.configs = sorted(
        {name for text in texts if (name := _config_named(text, path, tracked)) is not None}
    )
    facts.config_scripts = [word for word in words if word in known and word != path]
    for word in facts.config_scripts:
        if (tree := _parsed(root, word)) is not None:
            names |= assigned_texts(tree)
    for config in facts.configs:
        for key, value in _flat(_settings_in(root / config)):
            names.setdefault(key, value)
            texts.add(value)
    found: list[PrintedMetric] = []
    looped = _called_in_loops(trees.values())
    for name, tree in trees.items():
        folder = TextFolder(name, assigned_texts(tree, names))
        texts |= {text for node in ast.walk(tree) if (text := folder.text(node))}
        metrics, lines, repeated = _metrics_of(name, tree, looped)
        found += [metric for metric in metrics if metric.name not in facts.lines]
        facts.lines = {**lines, **facts.lines}
        facts.repeated |= repeated
        source = ast.unparse(tree)
        facts.reads_seed |= bool(
            re.search(r"environ[^\n]{0,12}['\"]SEED['\"]|getenv\('SEED'", source)
        )
        facts.seed_line = facts.seed_line or _seed_line(name, tree)
        facts.takes_settings |= "exec(open(" in source or (
            "sys.argv" in source and "globals()" in source
        )
    facts.paths = {text for text in texts if may_be_path(text)}
    facts.metrics = sorted(found, key=lambda metric: not is_likely_objective(metric))
    facts.metrics.sort(key=lambda metric: _order(metric, found))
    facts.packages = sorted(_packages(trees, known))
    return facts


def _order(metric: PrintedMetric, found: list[PrintedMetric]) -> int:
    """Return the place of a metric among all: find_metrics knows which name is the likeliest."""
    lines = "".join(f"{each.name}: {NUMBER}\n" for each in found)
    ranked = [each.name for each in find_metrics(lines)]
    return ranked.index(metric.name) if metric.name in ranked else len(ranked)


def documented_commands(root: Path, script: str, tracked: Iterable[str]) -> list[tuple[str, ...]]:
    """Return how pages and shell scripts of the repository start `script`: its arguments each
    time, those of the most frequent first."""
    seen: dict[tuple[str, ...], int] = {}
    module = script.removesuffix(".py").replace("/", ".")
    start = re.compile(
        rf"(?:python3?|uv run|accelerate launch)\s+(?:-m\s+{re.escape(module)}|(?:\./)?"
        rf"{re.escape(script)})(?![\w/])([^|>&;#`\n]*)"
    )
    for path in tracked:
        name = PurePosixPath(path).name.lower()
        if not (name.endswith((".md", ".rst", ".sh", ".txt")) or name in ("makefile", "justfile")):
            continue
        text = _source(root, path).replace("\\\n", " ")
        for match in start.finditer(text):
            try:
                words = tuple(shlex.split(match[1]))
            except ValueError:
                continue
            if not any(sign in word for word in words for sign in "$<>{}*") and "..." not in words:
                seen[words] = seen.get(words, 0) + 1
    return sorted(seen, key=lambda words: -seen[words])


def _modules_of(path: str, tree: ast.Module, known: Collection[str]) -> list[str]:
    """Return the files of the repository that a file imports."""
    folder, found = PurePosixPath(path).parent, list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            wanted = [(base, node.level)] if base else []
            wanted += [(f"{base}.{alias.name}".strip("."), node.level) for alias in node.names]
        else:
            continue
        for name, level in wanted:
            inside = name.replace(".", "/")
            above = [folder, *folder.parents][max(level - 1, 0) : max(level, 1)]
            for place in above if level else (folder, PurePosixPath(), PurePosixPath("src")):
                for file in (f"{inside}.py", f"{inside}/__init__.py"):
                    candidate = (place / file).as_posix()
                    if candidate in known and candidate not in found:
                        found.append(candidate)
    return found


def _packages(trees: Mapping[str, ast.Module], known: Collection[str]) -> set[str]:
    """Return what is imported at the top of the files, outside of a `try`, from elsewhere."""
    found = set()
    for path, tree in trees.items():
        local = {PurePosixPath(name).stem for name in known} | {
            part for name in known for part in PurePosixPath(name).parts[:-1]
        }
        for node in tree.body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            else:
                continue
            found |= {name.partition(".")[0] for name in names} - local - {path}
    return found


# ── metrics ─────────────────────────────────────────────────────────────────────────────────


def _metrics_of(
    path: str, tree: ast.Module, looped: Collection[str] = ()
) -> tuple[list[PrintedMetric], dict[str, str], set[str]]:
    """Return the metrics that a file prints, where, and which of them again and again.

    Every call that prints becomes the line that it would print, with a number for each value, and
    is read as a log is.

    Args:
        looped: names of functions that a loop calls.
    """
    lines: dict[str, str] = {}
    repeated: set[str] = set()
    log = ""
    for call, in_loop in _calls_in_loops(tree, looped):
        text, again = _line_of(call)
        if not text:
            continue
        log += f"{text}\n"
        for metric in find_metrics(f"{text}\n"):
            lines.setdefault(metric.name, f"{path}:{call.lineno}")
            if in_loop or again:
                repeated.add(metric.name)
    return find_metrics(log), lines, repeated


def _line_of(call: ast.Call) -> tuple[str, bool]:
    """Return what a call prints, imagined, and whether a framework prints that each epoch."""
    name = _called(call)
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "set_postfix":
        return " ".join(f"{word}={NUMBER}" for word in words if word), True
    if name == "evaluate" and not call.args and isinstance(call.func, ast.Attribute):
        return f"eval_loss: {NUMBER}", True
    if name == "fit" and {"validation_data", "validation_split"} & set(words):
        return f"val_loss: {NUMBER}", True
    if name not in _PRINTERS or not call.args:
        return "", False
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if owner.split(".")[0] in ("wandb", "mlflow", "writer", "np", "math", "torch"):
        return "", False
    if owner == "self" and name in ("log", "log_dict"):
        keys = _keys(call.args[0]) if name == "log_dict" else [_text_of(call.args[0])]
        return " ".join(f"{key}: {NUMBER}" for key in keys if key), True
    text = " ".join(_imagined(argument) for argument in call.args)
    if len(call.args) > 1 and (specs := _SPEC.findall(_imagined(call.args[0]))):
        text = _SPEC.sub(NUMBER, _imagined(call.args[0])) if "%" in "".join(specs) else text
    return text, False


def _keys(node: ast.expr) -> list[str]:
    return [_text_of(key) for key in node.keys] if isinstance(node, ast.Dict) else []


def _text_of(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _imagined(node: ast.expr) -> str:
    """Return what an expression looks like when it is printed."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_imagined, parts))
        case ast.BinOp(left=left, op=ast.Mod()):
            return _SPEC.sub(NUMBER, _imagined(left))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _imagined(left) + _imagined(right)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _SPEC.sub(NUMBER, _imagined(value))
        case ast.Call(func=ast.Attribute(attr="dumps"), args=[value, *_]):
            return _imagined(value)
        case ast.Dict(keys=keys):
            return ", ".join(f"'{_text_of(key)}': {NUMBER}" for key in keys if _text_of(key))
    return NUMBER


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _calls_in_loops(
    node: ast.AST, looped: Collection[str] = (), in_loop: bool = False
) -> Iterator[tuple[ast.Call, bool]]:
    """Yield every call in the order of the file, and whether a loop is around it, or around a call
    of its function."""
    for child in ast.iter_child_nodes(node):
        inside = in_loop or isinstance(child, (ast.For, ast.While, ast.AsyncFor))
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = child.name in looped
        if isinstance(child, ast.Call):
            yield child, in_loop
        yield from _calls_in_loops(child, looped, inside)


def _called_in_loops(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of the functions that loops call, themselves or through others."""
    looped: set[str] = set()
    before = -1
    listed = list(trees)
    while len(looped) > before:
        before = len(looped)
        calls = (pair for tree in listed for pair in _calls_in_loops(tree, looped))
        looped |= {_called(call) for call, in_loop in calls if in_loop} - {""}
    return looped


# ── arguments, settings, seeds ──────────────────────────────────────────────────────────────


def _arguments(tree: ast.Module) -> Iterator[Argument]:
    """Yield the arguments of argparse, click, absl, and of dataclasses that a parser is given."""
    for call in _calls(tree):
        name = _called(call)
        names = [_text_of(node) for node in call.args if _text_of(node)]
        if name == "add_argument" and names:
            words = {keyword.arg: keyword.value for keyword in call.keywords}
            typed = max(names, key=lambda each: each.startswith("--"))
            required = isinstance(words.get("required"), ast.Constant) and "True" in ast.unparse(
                words["required"]
            )
            if not typed.startswith("-"):
                nargs = ast.unparse(words["nargs"]) if "nargs" in words else ""
                required = nargs not in ("'?'", "'*'") and "default" not in words
            yield Argument(typed, _literal(words.get("default")), required)
        elif name in ("option", "argument") and names:
            words = {keyword.arg: keyword.value for keyword in call.keywords}
            required = (
                "default" not in words
                if name == "argument"
                else "True" in _unparsed(words, "required")
            )
            yield Argument(names[0], _literal(words.get("default")), required)
        elif name.startswith("DEFINE_") and names:
            yield Argument(f"--{names[0]}", _literal(call.args[1] if len(call.args) > 1 else None))
    if not any(_called(call) == "HfArgumentParser" for call in _calls(tree)):
        return
    for node in ast.walk(tree):
        is_dataclass = isinstance(node, ast.ClassDef) and "dataclass" in " ".join(
            map(ast.unparse, node.decorator_list)
        )
        for line in node.body if is_dataclass and isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                yield Argument(f"--{line.target.id}", _literal(line.value), line.value is None)


def _unparsed(words: Mapping[str | None, ast.expr], name: str) -> str:
    return ast.unparse(words[name]) if name in words else ""


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return None


def _seed_line(path: str, tree: ast.Module) -> str:
    for call in _calls(tree):
        if _called(call) in ("manual_seed", "seed_everything", "set_seed", "seed", "default_rng"):
            return f"{path}:{call.lineno}"
    return ""


def _config_named(text: str, script: str, tracked: Collection[str]) -> str | None:
    """Return the tracked file with settings that a text names, seen from the top or the script."""
    if not text.endswith(CONFIG_SUFFIXES) or len(text) > 200 or "\n" in text:
        return None
    for folder in (PurePosixPath(), PurePosixPath(script).parent):
        path = (folder / text.removeprefix("./")).as_posix()
        if path in tracked:
            return path
    return None


def _settings_in(path: Path) -> Any:
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8", "replace")
        if path.suffix == ".toml":
            return dict(re.findall(r"^\s*([\w-]+)\s*=\s*\"([^\"\n]*)\"", text, re.MULTILINE))
        return yaml.safe_load(text)  # JSON is YAML
    except (OSError, RecordError, yaml.YAMLError, RecursionError):
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
    try:
        return read_bytes(root / path, MAX_BYTES).decode("utf-8", "replace")
    except (OSError, RecordError):
        return ""
