"""What goes wrong when people make code faster: slower code, and code that is wrong."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from rewrites import Rewrite
from source import Source, call_of, plain, without_docstring

_FLIPPED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


def _nodes(source: Source) -> Iterator[tuple[ast.FunctionDef, ast.AST]]:
    """What runs when a function runs: no annotations, no decorators, no docstrings."""
    for function in source.functions:
        for statement in without_docstring(function):
            for node in ast.walk(statement):
                yield function, node


def copy_first(source: Source) -> Iterator[Rewrite]:
    """Slower: a loop over a copy."""
    for function, node in _nodes(source):
        if isinstance(node, ast.For) and not call_of(node.iter, "list", 1):
            yield Rewrite(
                f"{function.name}: a copy of {plain(node.iter)[:30]} first",
                source.replaced(node.iter, f"list({plain(node.iter)})"),
            )


def sort_for_the_least(source: Source) -> Iterator[Rewrite]:
    """Slower: everything is sorted for one of them."""
    for function, node in _nodes(source):
        if isinstance(node, ast.Call) and plain(node.func) == "min" and node.keywords:
            yield Rewrite(
                f"{function.name}: sorted for its first",
                source.replaced(node, f"sorted{plain(node)[3:]}[0]"),
            )


def build_again(source: Source) -> Iterator[Rewrite]:
    """Slower: a list is made anew for each member that it gets."""
    for function, node in _nodes(source):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
            continue
        name, _, method = plain(node.value.func).partition(".")
        if method == "append":
            new = f"{name} = {name} + [{plain(node.value.args[0])}]"
            yield Rewrite(f"{function.name}: {name} is made anew", source.replaced(node, new))


def flip_comparison(source: Source) -> Iterator[Rewrite]:
    """Wrong: the limit belongs to the other side."""
    for function, node in _nodes(source):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            new = f"{plain(node.left)} {_FLIPPED[type(node.ops[0])]} {plain(node.comparators[0])}"
            yield Rewrite(
                f"{function.name}: {new} (line {node.lineno})", source.replaced(node, new)
            )


def off_by_one(source: Source) -> Iterator[Rewrite]:
    """Wrong: a number is one too large or too small."""
    for function, node in _nodes(source):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            for new in (node.value + 1, node.value - 1):
                yield Rewrite(
                    f"{function.name}: {node.value} -> {new}"
                    f" (line {node.lineno}, column {node.col_offset})",
                    source.replaced(node, str(new)),
                )


def either_instead_of_both(source: Source) -> Iterator[Rewrite]:
    """Wrong: `or` for `and`."""
    for function, node in _nodes(source):
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            new = " or ".join(plain(value) for value in node.values)
            yield Rewrite(f"{function.name}: {new}", source.replaced(node, new))


def break_early(source: Source) -> Iterator[Rewrite]:
    """Wrong: a loop ends after its first round."""
    for function, node in _nodes(source):
        if isinstance(node, (ast.For, ast.While)):
            last = node.body[-1]
            text = source.text[slice(*source.span(last))].decode()
            pad = " " * last.col_offset
            new = "\n".join(line.removeprefix(pad) for line in text.split("\n")) + "\nbreak"
            yield Rewrite(
                f"{function.name}: one round of the loop in line {node.lineno}",
                source.replaced(last, new),
            )


def swap_members(source: Source) -> Iterator[Rewrite]:
    """Wrong: a pair the other way round. Members that something is looked for among stay."""
    listed = [
        node.comparators[0]
        for _, node in _nodes(source)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn))
    ]
    for function, node in _nodes(source):
        if not isinstance(node, ast.Tuple) or len(node.elts) != 2 or node in listed:
            continue
        if isinstance(node.ctx, ast.Load):
            one, other = (plain(each) for each in node.elts)
            text = source.text[slice(*source.span(node))]
            new = f"({other}, {one})" if text.startswith(b"(") else f"{other}, {one}"
            yield Rewrite(
                f"{function.name}: {new} (line {node.lineno})", source.replaced(node, new)
            )


SLOWER = (copy_first, sort_for_the_least, build_again)
WRONG = (flip_comparison, off_by_one, either_instead_of_both, break_early, swap_members)
