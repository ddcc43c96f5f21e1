"""Rewrites that are meant to make Python faster. Each yields every place where it fits.

They know the language, not this task, and what they look at is the tree: none is sure to be right
everywhere (a cache may see a list), which is what the suite is for.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from source import (
    Block,
    Source,
    assigned,
    blocks,
    body_text,
    call_of,
    changed,
    names_in,
    plain,
    same,
    single_assignment,
    substituted,
    within,
    without_docstring,
)


class Rewrite(NamedTuple):
    said: str
    text: bytes


CACHE_SIZES = (16, 256, 4096)


def _all_blocks(source: Source) -> Iterator[tuple[ast.FunctionDef, Block]]:
    for function in source.functions:
        for block in blocks(function):
            yield function, block


def _all_loops(source: Source) -> Iterator[tuple[ast.FunctionDef, ast.For]]:
    for function in source.functions:
        for node in ast.walk(function):
            if isinstance(node, ast.For) and not node.orelse:
                yield function, node


def grow_in_place(source: Source) -> Iterator[Rewrite]:
    """`x = x + [e]` -> `x.append(e)`, `x = x + list(y)` -> `x.extend(y)`."""
    for function, block in _all_blocks(source):
        for statement in block:
            found = single_assignment(statement)
            if found is None or not isinstance(found[1], ast.BinOp):
                continue
            name, sum_ = found[0], found[1]
            if not isinstance(sum_.op, ast.Add) or plain(sum_.left) != name:
                continue
            inner = call_of(sum_.right, "list", 1)
            if isinstance(sum_.right, ast.List) and len(sum_.right.elts) == 1:
                new = f"{name}.append({plain(sum_.right.elts[0])})"
            elif inner:
                new = f"{name}.extend({plain(inner[0])})"
            else:
                continue
            yield Rewrite(
                f"{function.name}: {name} grows in place (line {statement.lineno})",
                source.replaced(statement, new),
            )


def iterate_values(source: Source) -> Iterator[Rewrite]:
    """`for i in range(len(x))` with `x[i]` -> `for item in x`, or `enumerate(x)`."""
    for function, loop in _all_loops(source):
        name, sequence = _indexed(loop, 0)
        if not sequence or sequence in assigned(loop.body):
            continue
        table: dict[str, ast.expr] = {f"{sequence}[{name}]": ast.Name("item", ast.Load())}
        body = body_text(loop.body, table)
        other = name in names_in(ast.parse("if 1:\n" + body))
        head = (
            f"for {name}, item in enumerate({sequence}):" if other else f"for item in {sequence}:"
        )
        yield Rewrite(
            f"{function.name}: a loop over the values of {sequence}",
            source.replaced(loop, f"{head}\n{body}"),
        )


def iterate_neighbours(source: Source) -> Iterator[Rewrite]:
    """`for i in range(len(x) - 1)` with `x[i]`, `x[i + 1]` -> a loop over `zip(x, x[1:])`."""
    for function, loop in _all_loops(source):
        name, sequence = _indexed(loop, 1)
        if not sequence or sequence in assigned(loop.body):
            continue
        table: dict[str, ast.expr] = {
            f"{sequence}[{name}]": ast.Name("left", ast.Load()),
            f"{sequence}[{name} + 1]": ast.Name("right", ast.Load()),
        }
        body = body_text(loop.body, table)
        if name in names_in(ast.parse("if 1:\n" + body)):
            continue
        head = f"for left, right in zip({sequence}, {sequence}[1:]):"
        yield Rewrite(
            f"{function.name}: a loop over neighbours in {sequence}",
            source.replaced(loop, f"{head}\n{body}"),
        )


def _indexed(loop: ast.For, less: int) -> tuple[str, str]:
    """`for i in range(len(x) - less)` -> ("i", "x")."""
    stop = call_of(loop.iter, "range", 1)
    if not stop or not isinstance(loop.target, ast.Name):
        return "", ""
    end: ast.expr = stop[0]
    if less:
        if not (isinstance(end, ast.BinOp) and isinstance(end.op, ast.Sub)):
            return "", ""
        if plain(end.right) != str(less):
            return "", ""
        end = end.left
    inner = call_of(end, "len", 1)
    return (loop.target.id, inner[0].id) if inner and isinstance(inner[0], ast.Name) else ("", "")


def keep_the_pair(source: Source) -> Iterator[Rewrite]:
    """`for a, b in x: p = (a, b)` -> `for p in x`, where nothing else needs a or b."""
    for function, loop in _all_loops(source):
        found = single_assignment(loop.body[0])
        if found is None or len(loop.body) < 2 or not isinstance(loop.target, ast.Tuple):
            continue
        rest = loop.body[1:]
        used = {node.id for node in within(rest) if isinstance(node, ast.Name)}
        if plain(loop.target) != plain(found[1]) or used & names_in(loop.target):
            continue
        yield Rewrite(
            f"{function.name}: the pair as the loop gives it",
            source.replaced(loop, f"for {found[0]} in {plain(loop.iter)}:\n{body_text(rest)}"),
        )


def count_with_get(source: Source) -> Iterator[Rewrite]:
    """`if k in d: d[k] = d[k] + 1 else: d[k] = 1` -> `d[k] = d.get(k, 0) + 1`."""
    for function, block in _all_blocks(source):
        for statement in block:
            if not isinstance(statement, ast.If) or not isinstance(statement.test, ast.Compare):
                continue
            key, table = plain(statement.test.left), plain(statement.test.comparators[0])
            told = f"if {key} in {table}:\n    {table}[{key}] = {table}[{key}] + 1\n"
            if plain(statement) == f"{told}else:\n    {table}[{key}] = 1":
                yield Rewrite(
                    f"{function.name}: counting with get",
                    source.replaced(statement, f"{table}[{key}] = {table}.get({key}, 0) + 1"),
                )


def count_in_c(source: Source) -> Iterator[Rewrite]:
    """A loop that only counts -> `Counter.update`, with the table made by `Counter()`."""
    for function, loop in _all_loops(source):
        if len(loop.body) != 1 or not isinstance(loop.target, ast.Name):
            continue
        counted = plain(loop.body[0])
        for statement in function.body:
            made = single_assignment(statement)
            if made is None or plain(made[1]) not in ("{}", "collections.Counter()"):
                continue
            name, key = made[0], loop.target.id
            if counted != f"{name}[{key}] = {name}.get({key}, 0) + 1":
                continue
            text = source.replaced(loop, f"{name}.update({plain(loop.iter)})")
            text = Source(text).replaced(statement, f"{name} = collections.Counter()")
            yield Rewrite(f"{function.name}: counted by Counter", _importing(text, "collections"))


def first_of_sorted(source: Source) -> Iterator[Rewrite]:
    """`x = sorted(y, key=k); return x[0]` -> `return min(y, key=k)`."""
    for function, block in _all_blocks(source):
        for one, other in itertools.pairwise(block):
            found = single_assignment(one)
            if found is None or not isinstance(other, ast.Return) or other.value is None:
                continue
            call = found[1]
            if not isinstance(call, ast.Call) or plain(call.func) != "sorted":
                continue
            if plain(other.value) == f"{found[0]}[0]":
                new = f"return min{plain(call).removeprefix('sorted')}"
                yield Rewrite(
                    f"{function.name}: min instead of sorting", source.replaced(one, new, other)
                )


def comprehend(source: Source) -> Iterator[Rewrite]:
    """`x = []` and a loop that only appends -> a comprehension."""
    for function, block in _all_blocks(source):
        for one, loop in itertools.pairwise(block):
            found = single_assignment(one)
            if found is None or plain(found[1]) != "[]" or not isinstance(loop, ast.For):
                continue
            added = _appended(loop, found[0])
            if added is None or found[0] in names_in(added):
                continue
            each = f"{plain(added)} for {plain(loop.target)} in {plain(loop.iter)}"
            yield Rewrite(
                f"{function.name}: {found[0]} by a comprehension",
                source.replaced(one, f"{found[0]} = [{each}]", loop),
            )


def _appended(loop: ast.For, name: str) -> ast.expr | None:
    """What the loop's one statement puts at the end of the list `name`."""
    if len(loop.body) != 1 or loop.orelse:
        return None
    statement = loop.body[0]
    found = single_assignment(statement)
    if found and found[0] == name and isinstance(found[1], ast.BinOp):
        right = found[1].right
        if plain(found[1].left) == name and isinstance(right, ast.List) and len(right.elts) == 1:
            return right.elts[0]
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        if plain(call.func) == f"{name}.append":
            return call.args[0]
    return None


def memoise(source: Source) -> Iterator[Rewrite]:
    """A function remembers its latest answers."""
    for function in source.functions:
        if function.decorator_list:
            continue
        for size in CACHE_SIZES:
            text = source.replaced(
                function, f"@functools.lru_cache(maxsize={size})\n{_text_of(source, function)}"
            )
            said = f"{function.name}: remembers {size} answers"
            yield Rewrite(said, _importing(text, "functools"))


def _text_of(source: Source, node: ast.stmt) -> str:
    start, end = source.span(node)
    return source.text[start:end].decode()


def resize_cache(source: Source) -> Iterator[Rewrite]:
    """Another size for a cache."""
    for function in source.functions:
        for decorator in function.decorator_list:
            if not isinstance(decorator, ast.Call) or not decorator.keywords:
                continue
            for size in CACHE_SIZES:
                if plain(decorator.keywords[0].value) != str(size):
                    yield Rewrite(
                        f"{function.name}: a cache of {size}",
                        source.replaced(decorator.keywords[0].value, str(size)),
                    )


def hoist_call(source: Source) -> Iterator[Rewrite]:
    """`len(x)`, `tuple(x)`, ... in a loop that leaves x alone -> once before the loop."""
    for function, block in _all_blocks(source):
        for loop in block:
            if not isinstance(loop, (ast.For, ast.While)):
                continue
            moving = changed([loop])
            looked_at = [*ast.walk(loop.test)] if isinstance(loop, ast.While) else []
            for call in [*looked_at, *within(loop.body)]:
                kind = next((k for k in ("len", "tuple", "set") if call_of(call, k, 1)), None)
                if kind is None or names_in(call) & moving:
                    continue
                name = f"{kind}_of_{'_'.join(sorted(names_in(call) - {kind}))}"
                if name in names_in(function):
                    continue
                text = plain(_with(loop, plain(call), name))
                yield Rewrite(
                    f"{function.name}: {plain(call)} once",
                    source.replaced(loop, f"{name} = {plain(call)}\n{text}"),
                )


def _with(loop: ast.stmt, written: str, name: str) -> ast.AST:
    return substituted(loop, {written: ast.Name(name, ast.Load())})


def bind_method(source: Source) -> Iterator[Rewrite]:
    """`x.append(...)` in a loop that does not set x -> the method looked up once."""
    for function, block in _all_blocks(source):
        for loop in block:
            if not isinstance(loop, (ast.For, ast.While)):
                continue
            for name in sorted(changed([loop]) - assigned([loop])):
                written = f"{name}.append"
                uses = [one for one in within(loop.body) if isinstance(one, ast.Attribute)]
                if not any(plain(one) == written for one in uses):
                    continue
                text = plain(_with(loop, written, f"add_to_{name}"))
                yield Rewrite(
                    f"{function.name}: {written} looked up once",
                    source.replaced(loop, f"add_to_{name} = {written}\n{text}"),
                )


def leave_early(source: Source) -> Iterator[Rewrite]:
    """Where neighbours in x are compared with a pair: x itself, when it lacks one of them."""
    for function in source.functions:
        arguments = [one.arg for one in function.args.args]
        for node in ast.walk(function):
            if not isinstance(node, ast.Compare) or not isinstance(node.left, ast.Tuple):
                continue
            first, pair = node.left.elts[0], node.comparators[0]
            if not isinstance(first, ast.Subscript) or not isinstance(node.ops[0], ast.Eq):
                continue
            sequence = plain(first.value)
            start = without_docstring(function)[0]
            if sequence not in arguments or plain(pair) not in arguments:
                continue
            for side in (0, 1):
                new = f"if {plain(pair)}[{side}] not in {sequence}:\n    return {sequence}"
                if new in plain(function).replace("\n    ", "\n"):
                    continue
                yield Rewrite(
                    f"{function.name}: unchanged without {plain(pair)}[{side}]",
                    source.replaced(start, f"{new}\n{_text_of(source, start)}"),
                )


def constant_members(source: Source) -> Iterator[Rewrite]:
    """`x in [1, 2]` -> a tuple or a set, which is made once."""
    for function in source.functions:
        for node in ast.walk(function):
            if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.In):
                continue
            right = node.comparators[0]
            if isinstance(right, ast.List) and all(isinstance(o, ast.Constant) for o in right.elts):
                inner = plain(right)[1:-1]
                for new in (f"({inner})", f"{{{inner}}}"):
                    yield Rewrite(f"{function.name}: members as {new}", source.replaced(right, new))


def add_in_place(source: Source) -> Iterator[Rewrite]:
    """`i = i + 1` -> `i += 1`."""
    for function, block in _all_blocks(source):
        for statement in block:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.BinOp):
                continue
            target, sum_ = statement.targets[0], statement.value
            if (
                isinstance(sum_.op, ast.Add)
                and isinstance(sum_.right, ast.Constant)
                and same(target, sum_.left)
            ):
                yield Rewrite(
                    f"{function.name}: {plain(target)} is added to in line {statement.lineno}",
                    source.replaced(statement, f"{plain(target)} += {plain(sum_.right)}"),
                )


def _importing(text: bytes, module: str) -> bytes:
    """`text` with `import module` behind its docstring, if it is not there yet."""
    source = Source(text)
    if any(plain(one) == f"import {module}" for one in source.tree.body):
        return text
    end = source.span(source.tree.body[0])[1]
    rest = text[end:].removeprefix(b"\n") if text[end:].startswith(b"\n\nimport ") else text[end:]
    return text[:end] + f"\n\nimport {module}".encode() + rest


REWRITES = (
    grow_in_place, iterate_values, iterate_neighbours, keep_the_pair, count_with_get, count_in_c,
    first_of_sorted, comprehend, memoise, resize_cache, hoist_call, bind_method, leave_early,
    constant_members, add_in_place,
)  # fmt: skip
