"""Constants of a script, at its top or as defaults of its arguments: read them, and set them, with
nothing else touched.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from autohypothesis.errors import ChangeError
from autohypothesis.records.files import is_utf8
from autohypothesis.schema import Setting, did_you_mean

_BOM = b"\xef\xbb\xbf"
MAX_TEXT = 4_000
MAX_BITS = 200
_MAX_POWER = 256
_BLANK = b"\0"
"""Stands for a value that was taken out; no script that parses has this byte."""
_PATCH = "propose a patch instead"
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("a number", (int, float)),
    ("text", (str,)),
    ("a list", (list, tuple)),
)


class NotLiteralError(ChangeError):
    """An expression whose value is only known when the script runs."""


@dataclass
class _Binding:
    """All that code at the top of a module does to one name, or a parser to one argument."""

    sites: list[str] = field(default_factory=list)
    """Every binding in words, with its line."""
    values: list[ast.expr] = field(default_factory=list)
    """Those that plain assignments assign, or the defaults of an argument."""


def read_constants(source: bytes | str, name: str = "the script") -> dict[str, Any]:
    """Return name -> value, for every top-level name that is assigned one literal, once.

    Arithmetic on numbers counts as literal: `TOTAL_BATCH_SIZE = 2**19` is 524288. So does the
    default of an argument: `add_argument("--batch-size", default=8)` is `batch_size`.
    """
    content = source.encode() if isinstance(source, str) else source
    constants = {}
    for constant, binding in _bindings(_parse(content, name)).items():
        if binding.values and len(binding.sites) == 1:
            try:
                constants[constant] = _literal(binding.values[0])
            except NotLiteralError:
                continue
    return constants


def settable_names(source: bytes) -> list[str]:
    """Return the names that `set_constants` could find in `source`."""
    return [name for name, binding in _bindings(_parse(source)).items() if binding.values]


def setting_names(constants: Iterable[str], knobs: Collection[str]) -> list[str]:
    """Return the constants that are settings: in capitals, or among the task's `knobs`.

    Where none is in capitals, all are.
    """
    names = list(constants)
    in_capitals = any(map(str.isupper, names))
    return [name for name in names if not in_capitals or name.isupper() or name in knobs]


def computed_names(source: bytes) -> set[str]:
    """Return the settable constants whose value mentions another one, and so follows it.

    Raises:
        ChangeError: the script cannot be parsed.
    """
    return _computed(_bindings(_parse(source)))


def _computed(bindings: Mapping[str, _Binding]) -> set[str]:
    values = {name: bound.values for name, bound in bindings.items() if bound.values}
    constants = {name for name in values if name.isupper()} or values.keys()
    return {
        name
        for name, assigned in values.items()
        for value in assigned
        if any(isinstance(node, ast.Name) and node.id in constants for node in ast.walk(value))
    }


def blanked(source: bytes, settings: Mapping[str, Any]) -> tuple[bytes, set[str]]:
    """Return `source` without the values of its settings, and the names of those.

    A setting is a constant whose value `settings` (lower-case names) records: a literal that is
    equal to it, or an expression in capitals, such as `DEPTH = profile.depth`, that mentions no
    other constant. One that does is code: its value follows. Two sources with equal results differ
    in the values of these settings and in nothing else.

    Raises:
        ChangeError: the script cannot be parsed, or is not UTF-8.
    """
    content = source.removeprefix(_BOM)
    _refuse_other_encodings(content)
    bindings = _bindings(_parse(content))
    starts = _line_starts(content)
    computed = _computed(bindings)
    spans = {
        name: _span(binding.values[0], starts)
        for name, binding in bindings.items()
        if len(binding.sites) == 1 == len(binding.values)
        and (name.isupper() or name.upper() not in bindings)
        and name.lower() in settings
        and name not in computed
        and _has_value(name, binding.values[0], settings[name.lower()])
    }
    for start, end in sorted(spans.values(), reverse=True):
        before, after = content[:start], content[end:]
        while before.rstrip().endswith(b"(") and after.lstrip().startswith(b")"):  # they group
            before, after = before.rstrip()[:-1], after.lstrip()[1:]
        content = before + _BLANK + after
    return source[: len(source) - len(source.removeprefix(_BOM))] + content, set(spans)


def _has_value(name: str, node: ast.expr, recorded: Any) -> bool:
    """Return whether `recorded` is what a constant is, as far as its text tells."""
    try:
        return same(_literal(node), recorded)
    except NotLiteralError:
        return name.isupper()


def value_texts(source: bytes) -> dict[str, bytes]:
    """Return name -> the text of its value, for each name that is bound once, and plainly.

    Raises:
        ChangeError: the script cannot be parsed.
    """
    content = source.removeprefix(_BOM)
    starts = _line_starts(content)
    return {
        name: content[slice(*_span(binding.values[0], starts))]
        for name, binding in _bindings(_parse(content)).items()
        if len(binding.sites) == 1 == len(binding.values)
    }


def set_constants(source: bytes, overrides: Mapping[str, Setting]) -> bytes:
    """Return `source` with top-level constants set; keys match without case.

    Raises:
        ChangeError: a name is unknown, ambiguous, assigned more than once or elsewhere than in a
            plain statement, already has that value, belongs to the orchestrator (SEED), or the
            value cannot be written.
    """
    content = source.removeprefix(_BOM)
    _refuse_other_encodings(content)
    names = _bindings(_parse(content))
    chosen: dict[str, Setting] = {}
    for key, value in overrides.items():
        name = _find(key, names)
        if name in chosen:
            raise ChangeError(f"{name} is set twice, as {key!r} and by another spelling")
        chosen[name] = value
    starts = _line_starts(content)
    edits = [_edit(name, names[name].values[-1], value, starts) for name, value in chosen.items()]
    for start, end, text in sorted(edits, reverse=True):
        content = content[:start] + text.encode() + content[end:]
    written = read_constants(content)
    for name, value in chosen.items():
        if name not in written or not same(written[name], value):
            raise ChangeError(
                f"{name} reads back as {written.get(name)!r}, not {value!r}", hint=_PATCH
            )
    return source[: len(source) - len(source.removeprefix(_BOM))] + content


def _line_starts(content: bytes) -> list[int]:
    """Return where each line begins that Python knows: they end with \\n, \\r\\n or \\r."""
    return [0, *accumulate(map(len, content.splitlines(keepends=True)))]


def _span(node: ast.expr, starts: list[int]) -> tuple[int, int]:
    """Return where the text of a value begins and ends."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    return (
        starts[node.lineno - 1] + node.col_offset,
        starts[node.end_lineno - 1] + node.end_col_offset,
    )


def _parse(source: bytes, name: str = "the script") -> ast.Module:
    try:
        return ast.parse(source.removeprefix(_BOM))
    except SyntaxError as error:
        problem = f"{name} line {error.lineno} does not parse: {error.msg}"
        raise ChangeError(problem, hint="correct that line and propose it again") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ChangeError(f"{name} does not parse: {error}") from error


def _bindings(tree: ast.Module) -> dict[str, _Binding]:
    """Return every name that code at the top of the module binds, in the order of the file."""
    names: dict[str, _Binding] = {}
    for statement in tree.body:
        plain, value = _plain_assignment(statement)
        if value is not None:
            binding = names.setdefault(plain, _Binding())
            binding.values.append(value)
            binding.sites.append(f"line {statement.lineno}")
        for name, site in _other_bindings(statement, plain):
            names.setdefault(name, _Binding()).sites.append(site)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            for name in names.keys() & set(node.names):
                names[name].sites.append(f"line {node.lineno} (a function, through `global`)")
    for name, binding in _arguments(tree).items():
        alike = [each for each in names if each.lower() == name.lower()]
        if all(_copies_argument(names[each], name) for each in alike):
            for each in alike:
                del names[each]
            names[name] = binding
    return names


def _arguments(tree: ast.Module) -> dict[str, _Binding]:
    """Return name -> its defaults, of the arguments of argparse that have literal ones."""
    arguments: dict[str, _Binding] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=args, keywords=words):
                texts = [str(each.value) for each in args if isinstance(each, ast.Constant)]
                flag = next((text for text in texts if text.startswith("--")), None)
                default = next((word.value for word in words if word.arg == "default"), None)
                defaults = {} if flag is None else {option_name(flag): default}
            case ast.Call(func=ast.Attribute(attr="set_defaults"), keywords=words):
                defaults = {str(word.arg): word.value for word in words}
            case _:
                continue
        for name, value in defaults.items():
            binding = arguments.setdefault(name, _Binding())
            binding.sites.append(f"line {node.lineno} (an argument)")
            binding.values += [value] if value is not None else []
    return {name: each for name, each in arguments.items() if each.values and _is_known(each)}


def option_name(word: str) -> str:
    """Return the name of a setting that an option of a command line gives: `batch_size`."""
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def _is_known(binding: _Binding) -> bool:
    try:
        return bool([_literal(value) for value in binding.values])
    except NotLiteralError:
        return False


def _copies_argument(binding: _Binding, name: str) -> bool:
    """Return whether a name is bound once, to an attribute of that name: `LR = args.lr`."""
    match binding.values:
        case [ast.Attribute(attr=attribute)]:
            return len(binding.sites) == 1 and attribute == name
    return False


def _plain_assignment(statement: ast.stmt) -> tuple[str, ast.expr | None]:
    """Return name and value of `NAME = value` or `NAME: type = value`: what can be set."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, value
    return "", None


def _other_bindings(statement: ast.stmt, plain: str) -> Iterator[tuple[str, str]]:
    """Yield names that a statement binds in any other way: in a branch, a loop, by unpacking."""
    kind = type(statement).__name__.lower()
    words = {
        "assign": "an assignment to several names",
        "annassign": "an annotation without a value",
        "augassign": "an assignment like +=",
    }.get(kind, f"a statement of kind '{kind}'")
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name, f"line {statement.lineno} (a definition)"
        return
    for node in _module_scope(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node.id != plain:
            yield node.id, f"line {node.lineno} (inside {words})"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                yield name, f"line {node.lineno} (an import)"


def _module_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield `node` and what is in it, without what has a scope of its own."""
    own = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension)
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, own):
            yield from _module_scope(child)


def _find(key: str, names: Mapping[str, _Binding]) -> str:
    """Return the constant that `key` means; refuse one that cannot be set."""
    if key.lower() == "seed":
        raise ChangeError(
            f"{key} belongs to the orchestrator, which gives every candidate the same seeds",
            hint="choose it with `python orchestrator.py run-experiment --seed N`",
        )
    settable = [name for name, binding in names.items() if binding.values]
    alike = [key] if key in settable else [n for n in settable if n.lower() == key.lower()]
    if len(alike) > 1:
        raise ChangeError(f"{key!r} can mean {' or '.join(alike)}", hint="write it as the script")
    if alike:
        sites = names[alike[0]].sites
        if len(sites) > 1:
            words = ", ".join(sites[:4])
            raise ChangeError(f"{alike[0]} is bound more than once: {words}", hint=_PATCH)
        return alike[0]
    if elsewhere := names.get(key) or names.get(key.upper()):
        site = elsewhere.sites[0]
        raise ChangeError(f"{key} is not set by a plain assignment, but in {site}", hint=_PATCH)
    near = did_you_mean(key.upper(), [name for name in settable if name.isupper()] or settable)
    raise ChangeError(
        f"there is no constant {key!r}{near}", hint="`show ID` lists an experiment's settings"
    )


def _edit(name: str, node: ast.expr, value: Setting, starts: list[int]) -> tuple[int, int, str]:
    """Return where the present value stands, and what to put there."""
    try:
        present = _literal(node)
    except NotLiteralError as error:
        if not name.isupper():  # `model = build()` is no constant, `DEPTH = profile.depth` is one
            raise ChangeError(
                f"{name} is computed ({error}), not a constant", hint=_PATCH
            ) from error
        present = None
    else:
        _refuse_slip(name, present, value)
    return *_span(node, starts), _render(name, value, present)


def _refuse_slip(name: str, present: Any, value: Setting) -> None:
    """Refuse a value of another kind, and one that is there already."""
    check_kind(name, present, value)
    if same(present, value):
        raise ChangeError(
            f"{name} is {present!r} already, so this changes nothing", hint="propose another value"
        )


def check_kind(name: str, present: Any, value: Setting) -> None:
    """Refuse a number for a text, or the reverse, and a number that is not finite.

    Raises:
        ChangeError: `value` cannot take the place of `present`.
    """
    was, becomes = (
        next((word for word, types in _KINDS if isinstance(setting, types)), None)
        for setting in (present, value)
    )
    if was and becomes and was != becomes:
        raise ChangeError(
            f"{name} is {was} ({present!r}), and {value!r} is {becomes}",
            hint="propose a value of the same kind, or a patch",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ChangeError(f"{name} cannot be {value}", hint="propose a finite number")


def _refuse_other_encodings(content: bytes) -> None:
    """Positions count UTF-8 bytes, so a script that says it is something else cannot be edited."""
    hint = "save it as UTF-8 and commit it"
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        content.decode("utf-8")
    except (UnicodeDecodeError, SyntaxError) as error:
        raise ChangeError(f"the script is not UTF-8: {error}", hint=hint) from error
    if encoding not in ("utf-8", "utf-8-sig"):
        raise ChangeError(f"the script is {encoding}", hint=hint)


def _literal(node: ast.expr) -> Any:
    """Return the value of `node`, where it can be known without running anything."""
    with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(node)
    match node:
        case ast.Tuple(elts=items):
            return tuple(map(_literal, items))
        case ast.List(elts=items):
            return list(map(_literal, items))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(operand)
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            return _arithmetic(node)
    raise NotLiteralError(ast.unparse(node)[:80])


def _arithmetic(node: ast.BinOp) -> Any:
    left, right = _number(node.left), _number(node.right)
    if isinstance(node.op, ast.Pow) and (abs(left) > 1e6 or abs(right) > _MAX_POWER):
        raise NotLiteralError("a power beyond any constant")
    try:
        value = _OPERATORS[type(node.op)](left, right)
    except (ArithmeticError, ValueError) as error:
        raise NotLiteralError(str(error)) from error
    if isinstance(value, complex) or abs(value) > 1e300:
        raise NotLiteralError("a number beyond any constant")
    return value


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotLiteralError(ast.unparse(node)[:80])
    return value


def _render(name: str, value: Setting, like: Any) -> str:
    """Write `value` in Python, in the shape of `like`: JSON has lists where Python has tuples."""
    if isinstance(value, (list, tuple)):
        inner = like[0] if isinstance(like, (list, tuple)) and like else like
        parts = ", ".join(_render(name, item, inner) for item in value)
        if isinstance(like, list):
            return f"[{parts}]"
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    if isinstance(value, float) and not math.isfinite(value):
        raise ChangeError(f"{name} cannot be {value}", hint="propose a finite number")
    if isinstance(value, float) and value.is_integer() and type(like) is int and abs(value) < 2**53:
        return repr(int(value))  # a search that thinks in floats must not make DEPTH 8.0
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ChangeError(f"{name} cannot be a whole number of {value.bit_length()} bits")
    if type(value) is int and isinstance(like, float):
        return repr(float(value))
    if isinstance(value, str) and (len(value) > MAX_TEXT or not is_utf8(value)):
        raise ChangeError(f"{name} cannot be a text of {len(value)} characters like that")
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise ChangeError(f"{name} cannot be a {type(value).__name__}")


def same(first: Any, second: Any) -> bool:
    """Return whether two settings are equal: 1 is 1.0 but not True, and a list is a tuple."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
