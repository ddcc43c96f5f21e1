"""Values that a constant can hold: read from syntax without running it, and written back."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from autohypothesis.errors import ChangeError
from autohypothesis.schema import Setting

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
