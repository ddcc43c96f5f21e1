"""Texts that a Python file puts together from constants: the paths that it reads, above all.

A path is `os.path.join("data", name)`, `Path(__file__).parent / "data"` or an f-string as often as
one literal. Nothing is run: what is not known stays unknown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType


class TextFolder:
    """Computes texts of one file that are put together from constants."""

    def __init__(self, path: str, names: Mapping[str, str]) -> None:
        self._names = {"__file__": path, **names}

    def text(self, node: ast.AST | None) -> str:
        """Return the text that an expression stands for; "" where it is not known."""
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.Name(id=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
                return self._names.get(name, "")
            case ast.Attribute(value=inner, attr="parent"):
                return self._parent(self.text(inner))
            case ast.Attribute(attr=name):
                return self._names.get(name, "")
            case ast.JoinedStr(values=parts):
                texts = [self.text(part) for part in parts]
                return "".join(texts) if all(texts) else ""
            case ast.FormattedValue(value=inner):
                return self.text(inner)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return self._joined([left, right])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                texts = [self.text(left), self.text(right)]
                return "".join(texts) if all(texts) else ""
            case ast.Call(func=func, args=args):
                return self._call(func, args)
        return ""

    def _call(self, func: ast.expr, args: list[ast.expr]) -> str:
        name = func.attr if isinstance(func, ast.Attribute) else ast.unparse(func)
        if name in ("Path", "PurePath", "PosixPath", "join", "joinpath"):
            first = [func.value] if name == "joinpath" and isinstance(func, ast.Attribute) else []
            return self._joined([*first, *args])
        if name in ("abspath", "realpath", "expanduser", "str", "fspath") and args:
            return self.text(args[0])
        if name == "dirname" and args:
            return self._parent(self.text(args[0]))
        if name in ("resolve", "absolute", "as_posix") and isinstance(func, ast.Attribute):
            return self.text(func.value)
        if name == "get" and len(args) == 2:
            return self.text(args[1])
        return "." if name in ("getcwd", "cwd") else ""

    def _joined(self, nodes: list[ast.expr]) -> str:
        texts = [self.text(node) for node in nodes]
        return PurePosixPath(*texts).as_posix() if texts and all(texts) else ""

    def _parent(self, text: str) -> str:
        return PurePosixPath(text).parent.as_posix() if text else ""


def assigned_texts(
    tree: ast.Module, known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return name -> text for what is assigned texts, in any scope: the first one of each.

    A name that is `known` keeps its text: a configuration or an argument replaces it.
    """
    names = dict(known)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ):
                text = TextFolder("", names).text(value) if value is not None else ""
                if text:
                    names.setdefault(name, text)
    return names


def may_be_path(text: str) -> bool:
    """Return whether a text could name a file inside of the repository."""
    return (
        0 < len(text) < 300
        and not re.search(r"[\n\r\0\"<>|]|://", text)
        and not text.startswith(("/", "~", "-", "%"))
        and text.strip() == text
        and text not in (".", "..")
    )
