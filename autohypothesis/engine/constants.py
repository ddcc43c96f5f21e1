"""Top-level constants of a script: read them, and set them without touching anything else.

A script is parsed, never imported. Values are replaced by AST position on the file's UTF-8 bytes
(which is what `ast` counts), so comments, spacing and line ends stay what they are, and the result
is parsed again: every constant must read back as the value that was asked for.
"""

from __future__ import annotations

import ast
import io
import math
import operator
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autohypothesis.errors import ChangeError
from autohypothesis.schema import Setting, nearest

_BOM = b"\xef\xbb\xbf"


@dataclass
class _Name:
    """One name at the top of a module, and everything there that binds it."""

    value: ast.expr | None = None
    """What the one plain assignment to it assigns."""
    sites: list[str] = field(default_factory=list)
    """Every binding in words, with its line: the plain assignments first seen first."""
    plain: int = 0


def parse(source: bytes, name: str = "the script") -> ast.Module:
    """The syntax tree.

    Raises:
        ChangeError: it does not parse; the message has the line.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        said = f"{name} line {error.lineno} does not parse: {error.msg}"
        raise ChangeError(said, hint="correct that line and propose it again") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ChangeError(f"{name} does not parse: {error}") from error


def read_constants(source: bytes | str) -> dict[str, Any]:
    """Name -> value, for every top-level name that is assigned one literal, once.

    Arithmetic on numbers counts as literal: `TOTAL_BATCH_SIZE = 2**19` is 524288.
    """
    content = source.encode() if isinstance(source, str) else source
    found = {}
    for name, facts in _names(parse(content.removeprefix(_BOM))).items():
        if facts.value is not None and len(facts.sites) == 1:
            try:
                found[name] = literal(facts.value)
            except NotLiteralError:
                continue
    return found


def settable_names(source: bytes) -> list[str]:
    """The names that `set_constants` could find in `source`."""
    names = _names(parse(source.removeprefix(_BOM)))
    return [name for name, facts in names.items() if facts.plain]


def computed_names(source: bytes) -> set[str]:
    """Settable constants whose value mentions another one: they follow it, and are nobody's choice.

    Raises:
        ChangeError: the script cannot be parsed.
    """
    settable = set(settable_names(source))
    constants = {name for name in settable if name.isupper()} or settable
    found = set()
    for statement in parse(source.removeprefix(_BOM)).body:
        name, value = _plain_assignment(statement)
        if value is not None and name in settable:
            mentioned = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
            if mentioned & constants:
                found.add(name)
    return found


def set_constants(source: bytes, overrides: Mapping[str, Setting]) -> bytes:
    """`source` with top-level constants set; keys match without case.

    Raises:
        ChangeError: a name is unknown, ambiguous, assigned more than once or elsewhere than in a
            plain statement, already has that value, belongs to the orchestrator (SEED), or the
            value cannot be written.
    """
    bom, content = (_BOM, source[len(_BOM) :]) if source.startswith(_BOM) else (b"", source)
    _refuse_other_encodings(content)
    names = _names(parse(content))
    chosen: dict[str, Setting] = {}
    for key, value in overrides.items():
        name = _find(key, names)
        if name in chosen:
            raise ChangeError(f"{name} is set twice, as {key!r} and by another spelling")
        chosen[name] = value
    starts = _line_starts(content)
    edits = [_edit(name, names[name], value, starts) for name, value in chosen.items()]
    for start, end, text in sorted(edits, reverse=True):
        content = content[:start] + text.encode() + content[end:]
    _verify(content, chosen)
    return bom + content


# ── finding the assignment ──────────────────────────────────────────────────────────────────


def _names(tree: ast.Module) -> dict[str, _Name]:
    """Every name that code at the top of the module binds, in the order of the file."""
    names: dict[str, _Name] = {}
    for statement in tree.body:
        target, value = _plain_assignment(statement)
        if target is not None:
            facts = names.setdefault(target, _Name())
            facts.value, facts.plain = value, facts.plain + 1
            facts.sites.append(f"line {statement.lineno}")
        for name, where in _other_bindings(statement, plain=target):
            names.setdefault(name, _Name()).sites.append(where)
    for name, where in _global_bindings(tree):
        if name in names:
            names[name].sites.append(where)
    return names


def _plain_assignment(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """`NAME = value` or `NAME: type = value`: the one form that can be set."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target: ast.expr = statement.targets[0]
        value: ast.expr | None = statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, value = statement.target, statement.value
    else:
        return None, None
    return (target.id, value) if isinstance(target, ast.Name) else (None, None)


def _other_bindings(statement: ast.stmt, plain: str | None) -> Iterator[tuple[str, str]]:
    """Names that a statement binds in any other way: in a branch, a loop, by unpacking, `+=`."""
    kind = type(statement).__name__.lower()
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name, f"line {statement.lineno} (a definition)"
        return
    for node in _module_scope(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            if node.id != plain:
                yield node.id, f"line {node.lineno} (inside {_article(kind)})"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                yield name, f"line {node.lineno} (an import)"


def _article(kind: str) -> str:
    words = {
        "assign": "an assignment to several names",
        "annassign": "an annotation without a value",
        "augassign": "an assignment like +=",
    }
    return words.get(kind, f"a statement of kind '{kind}'")


def _module_scope(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is in it, without the bodies of functions and classes."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(child, ast.comprehension):
            continue
        yield from _module_scope(child)


def _global_bindings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            for name in node.names:
                yield name, f"line {node.lineno} (a function, through `global`)"


def _find(key: str, names: Mapping[str, _Name]) -> str:
    """The constant that `key` means.

    Raises:
        ChangeError: none, more than one, or one that cannot be set.
    """
    if key.lower() == "seed":
        raise ChangeError(
            f"{key} belongs to the orchestrator, which gives every candidate the same seeds",
            hint="choose it with `python orchestrator.py run-experiment --seed N`",
        )
    settable = [name for name, facts in names.items() if facts.plain]
    alike = [name for name in settable if name.lower() == key.lower()]
    name = key if key in settable else alike[0] if len(alike) == 1 else ""
    if len(alike) > 1 and not name:
        raise ChangeError(f"{key!r} can mean {' or '.join(alike)}", hint="write it as the script")
    if not name:
        elsewhere = names.get(key) or names.get(key.upper())
        if elsewhere is not None:
            raise ChangeError(
                f"{key} is not set by a plain assignment, but in {elsewhere.sites[0]}",
                hint="propose a patch instead",
            )
        near = nearest(key.upper(), [one for one in settable if one.isupper()] or settable)
        raise ChangeError(
            f"there is no constant {key!r}{near}", hint="`show ID` lists an experiment's settings"
        )
    sites = names[name].sites
    if len(sites) > 1:
        raise ChangeError(
            f"{name} is bound more than once: {', '.join(sites[:4])}",
            hint="propose a patch instead",
        )
    return name


# ── writing the value ───────────────────────────────────────────────────────────────────────


def _edit(name: str, facts: _Name, value: Setting, starts: list[int]) -> tuple[int, int, str]:
    """Where the present value stands, and what to put there."""
    node = facts.value
    assert node is not None and node.end_lineno is not None and node.end_col_offset is not None
    try:
        present = literal(node)
    except NotLiteralError as error:
        if not name.isupper():  # `model = build()` is no constant, `DEPTH = profile.depth` is one
            raise ChangeError(
                f"{name} is computed ({error}), not a constant", hint="propose a patch instead"
            ) from error
        text = render(name, value, like=None)
    else:
        refuse_other_kind(name, present, value)
        if same(present, value):
            raise ChangeError(
                f"{name} is {present!r} already, so this changes nothing",
                hint="propose another value",
            )
        text = render(name, value, like=present)
    start = starts[node.lineno - 1] + node.col_offset
    return start, starts[node.end_lineno - 1] + node.end_col_offset, text


def _verify(content: bytes, chosen: Mapping[str, Setting]) -> None:
    """Read the result back: it must hold what was asked for.

    Raises:
        ChangeError: it does not.
    """
    found = read_constants(content)
    for name, value in chosen.items():
        if name not in found or not same(found[name], value):
            raise ChangeError(
                f"{name} reads back as {found.get(name)!r}, not {value!r}",
                hint="propose a patch instead",
            )


def _line_starts(content: bytes) -> list[int]:
    """The offset of every line, with the line ends that Python knows: \\n, \\r\\n and \\r."""
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _refuse_other_encodings(content: bytes) -> None:
    """Positions count UTF-8 bytes, so a script that says it is something else cannot be edited."""
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        content.decode("utf-8")
    except (UnicodeDecodeError, SyntaxError) as error:
        raise ChangeError(
            f"the script is not UTF-8: {error}", hint="save it as UTF-8 and commit it"
        ) from error
    if encoding not in ("utf-8", "utf-8-sig"):
        raise ChangeError(f"the script is {encoding}", hint="save it as UTF-8 and commit it")


MAX_TEXT = 4_000
MAX_BITS = 200
_MAX_POWER = 256

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class NotLiteralError(ChangeError):
    """An expression whose value is only known when the script runs."""


def literal(node: ast.expr) -> Any:
    """The value of `node`, where it can be known without running anything.

    Raises:
        NotLiteralError: it cannot.
    """
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, (ast.Tuple, ast.List)):
        items = [literal(item) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _arithmetic(node)
    raise NotLiteralError(ast.unparse(node)[:80])


def _arithmetic(node: ast.BinOp) -> Any:
    left, right = _number(node.left), _number(node.right)
    too_large = isinstance(node.op, ast.Pow) and (abs(left) > 1e6 or abs(right) > _MAX_POWER)
    if too_large:
        raise NotLiteralError("a power beyond any constant")
    try:
        value = _OPERATORS[type(node.op)](left, right)
    except (ArithmeticError, ValueError) as error:
        raise NotLiteralError(str(error)) from error
    if isinstance(value, complex) or abs(value) > 1e300:
        raise NotLiteralError("a number beyond any constant")
    return value


def _number(node: ast.expr) -> Any:
    value = literal(node)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotLiteralError(ast.unparse(node)[:80])
    return value


def render(name: str, value: Setting, like: Any) -> str:
    """`value` as Python writes it, in the shape of `like`: JSON has lists where Python has tuples.

    Raises:
        ChangeError: not finite, too long, or not a literal.
    """
    if isinstance(value, (list, tuple)):
        inner = like[0] if isinstance(like, (list, tuple)) and like else like
        parts = [render(name, item, inner) for item in value]
        if isinstance(like, list):
            return f"[{', '.join(parts)}]"
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if isinstance(value, float) and not math.isfinite(value):
        raise ChangeError(f"{name} cannot be {value}", hint="propose a finite number")
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > MAX_BITS:
            raise ChangeError(f"{name} cannot be a whole number of {value.bit_length()} bits")
        return repr(float(value)) if isinstance(like, float) else repr(value)
    if isinstance(value, float) and value.is_integer() and type(like) is int and abs(value) < 2**53:
        return repr(int(value))  # a search that thinks in floats must not make DEPTH 8.0
    if isinstance(value, str) and (len(value) > MAX_TEXT or not _is_text(value)):
        raise ChangeError(f"{name} cannot be a text of {len(value)} characters like that")
    if value is None or isinstance(value, (bool, float, str)):
        return repr(value)
    raise ChangeError(f"{name} cannot be a {type(value).__name__}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_other_kind(name: str, present: Any, value: Setting) -> None:
    """A number for a text, or the reverse, is a slip of whoever wrote the change."""
    kinds = (("a number", (int, float)), ("text", (str,)), ("a list", (list, tuple)))
    was = next((word for word, types in kinds if isinstance(present, types)), None)
    becomes = next((word for word, types in kinds if isinstance(value, types)), None)
    if was and becomes and was != becomes:
        raise ChangeError(
            f"{name} is {was} ({present!r}), and {value!r} is {becomes}",
            hint="propose a value of the same kind, or a patch",
        )


def same(one: Any, other: Any) -> bool:
    """Equal as a setting: 1 is 1.0 but not True, and a list is a tuple."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
