"""A Python file as its tree and its bytes: what a rewrite looks at, and how it edits.

An edit replaces the bytes of one node, so that comments and all else stay as they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Block = list[ast.stmt]


@dataclass(frozen=True)
class Source:
    text: bytes

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for line in self.text.split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        return starts

    @property
    def functions(self) -> list[ast.FunctionDef]:
        return [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]

    def span(self, node: Any) -> tuple[int, int]:
        """The bytes of a node."""
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def replaced(self, node: Any, new: str, last: Any = None) -> bytes:
        """The text with `node` (to the end of `last`) as `new`, indented as `node` is."""
        start, end = self.span(node)[0], self.span(last or node)[1]
        indented = new.replace("\n", "\n" + " " * node.col_offset)
        return self.text[:start] + indented.encode() + self.text[end:]


def plain(node: ast.AST) -> str:
    return ast.unparse(node)


def same(one: ast.AST, other: ast.AST) -> bool:
    return ast.unparse(one) == ast.unparse(other)


def blocks(function: ast.FunctionDef) -> Iterator[Block]:
    """Every list of statements in a function, its own first."""
    for node in ast.walk(function):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def within(statements: Block) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)


def assigned(statements: Block) -> set[str]:
    """Names that are set within `statements`."""
    return {
        node.id
        for node in within(statements)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }


def changed(statements: Block) -> set[str]:
    """Names that are set or whose methods are called, which may change what they hold."""
    called = {
        node.func.value.id
        for node in within(statements)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
    }
    return assigned(statements) | called


def names_in(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def without_docstring(function: ast.FunctionDef) -> Block:
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def single_assignment(statement: ast.AST) -> tuple[str, ast.expr] | None:
    """`x = value` -> ("x", value)."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, statement.value
    return None


def call_of(node: ast.AST, name: str, arguments: int) -> list[ast.expr] | None:
    """The arguments of a call of the builtin `name` with so many of them, and no others."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
        and len(node.args) == arguments
        and not node.keywords
    ):
        return node.args
    return None


class Substituted(ast.NodeTransformer):
    """Expressions replaced by others, found by how they are written."""

    def __init__(self, table: dict[str, ast.expr]) -> None:
        self.table = table

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and ast.unparse(node) in self.table:
            return self.table[ast.unparse(node)]
        return self.generic_visit(node)


def substituted(node: ast.AST, table: dict[str, ast.expr]) -> ast.AST:
    """A copy of `node` with every expression that is written as a key of `table` replaced."""
    copy: ast.AST = Substituted(table).visit(ast.parse(ast.unparse(node)).body[0])
    return copy


def body_text(statements: Block, table: dict[str, ast.expr] | None = None) -> str:
    """Statements as an indented block."""
    texts = [plain(substituted(one, table or {})) for one in statements]
    return "\n".join("    " + line for text in texts for line in text.split("\n"))
