"""Texts that a Python file puts together from constants: the paths that it reads, above all.

A path is `os.path.join("data", name)`, `Path(__file__).parent / "data"` or an f-string as often as
one literal. Nothing is run: what is not known stays unknown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

_PATH = re.compile(r"(?!\.{1,2}$)[^\s/~%\"<>|-](?:[^\n\r\0\"<>|]{0,298}[^\s\0\"<>|])?")


def assigned_texts(path: str, tree: ast.Module, known: Mapping[str, str]) -> dict[str, str]:
    """Return name -> text of what a file assigns texts to, in any scope: the first one of each.

    A name that is `known` keeps its text: a configuration or an argument replaces it.
    """
    names = {**known, "__file__": path}
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ):
                if text := text_of(value, names):
                    names.setdefault(name, text)
    return names


def text_of(node: ast.AST | None, names: Mapping[str, str]) -> str:
    """Return the text that an expression stands for; "" where it is not known."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case (
            ast.FormattedValue(value=inner)
            | ast.Call(func=ast.Attribute(value=inner, attr="resolve" | "absolute" | "as_posix"))
        ):
            return text_of(inner, names)
        case ast.Attribute(value=inner, attr="parent"):
            return _parent(text_of(inner, names))
        case (
            ast.Name(id=name)
            | ast.Attribute(attr=name)
            | ast.Subscript(slice=ast.Constant(value=str(name)))
        ):
            return names.get(name, "")
        case ast.JoinedStr(values=parts):
            return "".join(_texts(parts, names))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return "".join(_texts([left, right], names))
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _joined([left, right], names)
        case ast.Call(func=ast.Attribute(value=inner, attr="joinpath"), args=args):
            return _joined([inner, *args], names)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
            if name in ("Path", "PurePath", "PosixPath", "join", "abspath", "realpath", "str"):
                return _joined(args, names)
            if name == "dirname":
                return _parent(_joined(args, names))
            if name == "get" and len(args) == 2:  # the default of an environment variable
                return text_of(args[1], names)
            return "." if name in ("getcwd", "cwd") else ""
    return ""


def _texts(nodes: Iterable[ast.AST], names: Mapping[str, str]) -> list[str]:
    """Return the texts of all of `nodes`; none where one of them is not known."""
    texts = [text_of(node, names) for node in nodes]
    return texts if all(texts) else []


def _joined(nodes: Iterable[ast.AST], names: Mapping[str, str]) -> str:
    texts = _texts(nodes, names)
    return PurePosixPath(*texts).as_posix() if texts else ""


def _parent(text: str) -> str:
    return PurePosixPath(text).parent.as_posix() if text else ""


def may_be_path(text: str) -> bool:
    """Return whether a text could name a file inside of the repository."""
    return bool(_PATH.fullmatch(text)) and "://" not in text
