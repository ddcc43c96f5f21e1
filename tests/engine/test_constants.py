"""Setting a constant must change that constant, and not one byte more."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.engine.constants import read_constants, same, set_constants, settable_names
from autohypothesis.errors import ChangeError

SOURCE = """# Größen – of the model
from prepare import profile

DEPTH = profile.depth  # layers – not heads
BETAS = 0.8, 0.95
ÄÖ = "ü"; LR = 4e-2 # after a multibyte name
TOTAL: int = 2**19
WINDOWS = [
    (1, 2),  # lost when the list is replaced
]
NAME = 'one' "two"
NOTHING = None
NEGATIVE = -1
SEED = 3
build = profile.build()
"""


@pytest.mark.parametrize(
    ("overrides", "before", "after"),
    [
        ({"depth": 8}, "DEPTH = profile.depth  # layers", "DEPTH = 8  # layers"),
        ({"betas": [0.9, 0.99]}, "BETAS = 0.8, 0.95", "BETAS = (0.9, 0.99)"),
        ({"Lr": 1}, "LR = 4e-2 # after", "LR = 1.0 # after"),
        ({"äö": "ß'\""}, 'ÄÖ = "ü";', "ÄÖ = 'ß\\'\"';"),
        ({"total": 2.0**18}, "TOTAL: int = 2**19", "TOTAL: int = 262144"),
        ({"name": "x"}, "NAME = 'one' \"two\"", "NAME = 'x'"),
        ({"nothing": [1]}, "NOTHING = None", "NOTHING = (1,)"),
        ({"windows": [[3, 4], [5, 6]]}, "[\n    (1, 2),  # lost when the list is replaced\n]",
         "[(3, 4), (5, 6)]"),
    ],
)  # fmt: skip
def test_one_value_changes_and_nothing_else(
    overrides: dict[str, Any], before: str, after: str
) -> None:
    assert before in SOURCE
    changed = set_constants(SOURCE.encode(), overrides).decode()
    assert changed == SOURCE.replace(before, after)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_the_byte_order_mark_stay(end: str, bom: bytes) -> None:
    source = bom + f"# é\x0c{end}A = 1{end}{end}B = 2  # b{end}".encode()
    changed = set_constants(source, {"A": 5, "B": 6})
    assert changed == source.replace(b"A = 1", b"A = 5").replace(b"B = 2", b"B = 6")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"dpeth": 3}, "there is no constant 'dpeth' (did you mean 'DEPTH'?)"),
        ({"SEED": 3}, "belongs to the orchestrator"),
        ({"LR": 0.04}, "LR is 0.04 already"),
        ({"betas": [0.8, 0.95]}, "changes nothing"),
        ({"LR": math.nan}, "LR cannot be nan"),
        ({"betas": [0.9, math.nan]}, "cannot be nan"),
        ({"LR": "0.1"}, "LR is a number (0.04), and '0.1' is text"),
        ({"name": 3}, "NAME is text"),
        ({"betas": 0.9}, "BETAS is a list"),
        ({"LR": 0.1, "lr": 0.2}, "LR is set twice"),
        ({"negative": 10**400}, "NEGATIVE cannot be a whole number of"),
        ({"name": "x" * 5_000}, "cannot be a text of 5000 characters"),
        ({"name": "\ud800"}, "cannot be a text"),
        ({"build": 3}, "build is computed (profile.build()), not a constant"),
        ({"profile": 3}, "is not set by a plain assignment, but in line 2 (an import)"),
        ({"depth": {"a": 1}}, "DEPTH cannot be a dict"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ChangeError) as caught:
        set_constants(SOURCE.encode(), overrides)
    assert said in caught.value.problem


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("X = 1\nX = 2\n", "bound more than once: line 1, line 2"),
        ("X = 1\nif y:\n    X = 2\n", "line 3 (inside a statement of kind 'if')"),
        ("try:\n    X = 2\nexcept E:\n    pass\n", "not set by a plain assignment"),
        ("for X in y:\n    pass\n", "not set by a plain assignment"),
        ("X, Y = 1, 2\n", "an assignment to several names"),
        ("X: int\n", "an annotation without a value"),
        ("X = 1\ndel X\n", "bound more than once"),
        ("X = 1\ndef f():\n    global X\n    X = 2\n", "a function, through `global`"),
        ("X = 1\ndef X(): pass\n", "(a definition)"),
        ("X = 1\nif (X := 2): pass\n", "bound more than once"),
        ("def f():\n    X = 1\n", "there is no constant"),
        ("def f(:\n", "line 1 does not parse"),
        ("X = 1\0\n", "does not parse"),
        ("# -*- coding: latin-1 -*-\nX = 1\n", "is iso-8859-1"),
        ("X = 1  # \xe9\n", "not UTF-8"),
    ],
)
def test_what_is_no_plain_constant_is_refused(code: str, said: str) -> None:
    """Or the override would be overwritten, or would set something else."""
    with pytest.raises(ChangeError) as caught:
        set_constants(code.encode("latin-1"), {"X": 9})
    assert said in caught.value.problem


ARGUMENTS = """def main():  # é
    parser.add_argument("-b", "--batch-size", type=int, default = 8, help="default = 8")
    group.add_argument("--lr", default=(3e-4)); parser.add_argument("--data", default=HERE)
    parser.add_argument("--Width", default=WIDTH)
WIDTH, LR = 3, 1
DEPTH = args.depth
p.add_argument('--depth', default=2**2)
p.add_argument('--twice', default=1); q.add_argument('--twice', default=1)
p.add_argument('--later', default=1); p.set_defaults(later=2)
"""


@pytest.mark.parametrize(
    ("overrides", "before", "after"),
    [
        ({"batch_size": 16}, "default = 8, help", "default = 16, help"),
        ({"depth": 5}, "default=2**2", "default=5"),
        ({"DEPTH": 5}, "default=2**2", "default=5"),  # the constant only copies the argument
    ],
)
def test_the_default_of_an_argument_is_a_constant(
    overrides: dict[str, Any], before: str, after: str
) -> None:
    assert set_constants(ARGUMENTS.encode(), overrides).decode() == ARGUMENTS.replace(before, after)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("twice", "bound more than once: line 8 (an argument), line 8 (an argument)"),
        ("later", "bound more than once: line 9 (an argument), line 9 (an argument)"),
        ("data", "there is no constant 'data'"),
        ("lr", "lr is not set by a plain assignment"),
    ],
)
def test_a_default_that_is_not_the_only_one_or_is_computed_is_refused(name: str, said: str) -> None:
    with pytest.raises(ChangeError) as caught:
        set_constants(ARGUMENTS.encode(), {name: 9})
    assert said in caught.value.problem


def test_a_name_is_met_in_its_own_case_before_another() -> None:
    assert set_constants(b"x = 1\nX = 2\n", {"X": 3}) == b"x = 1\nX = 3\n"
    assert set_constants(b"x = 1\nX = 2\n", {"x": 3}) == b"x = 3\nX = 2\n"
    with pytest.raises(ChangeError, match="can mean x_A or X_a"):
        set_constants(b"x_A = 1\nX_a = 2\n", {"X_A": 3})


def test_constants_inside_functions_are_not_constants() -> None:
    code = "A = 1\ndef f():\n    A = 2\n    return [A for A in range(3)]\nB = [A for A in ()]\n"
    assert set_constants(code.encode(), {"A": 5}) == code.replace("A = 1", "A = 5").encode()


def test_reading_never_runs_anything() -> None:
    source = "A = 2**10 // 3\nB = open('/x')\nC = 9**9**9\nD = 1 / 0\nE = -2 ** 2\nF = (1, [2.5])\n"
    source += "G = 'a' * 10**9\nH = 1e308 * 10\nI = (-8) ** 0.5\nA2 = A\n"
    assert read_constants(source) == {"A": 341, "E": -4, "F": (1, [2.5])}
    assert settable_names(source.encode())[:3] == ["A", "B", "C"]


# ── properties ──────────────────────────────────────────────────────────────────────────────

scalars = st.one_of(
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.none(),
)
values = st.one_of(scalars, st.lists(scalars, max_size=4))
comments = st.text(st.characters(exclude_characters="\n\r\0\x0c", exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None)
@given(value=values, comment=comments, present=st.sampled_from(["1 + x", "f('é')", "(y)", "[*z]"]))
def test_any_value_reads_back_as_itself(value: Any, comment: str, present: str) -> None:
    head = "'''é'''; B = 'ü'; "
    source = f"{head}CONST = {present}  # {comment}\nC = 3\n".encode()
    changed = set_constants(source, {"const": value})
    read = read_constants(changed)
    assert same(read["CONST"], value)
    assert (read["B"], read["C"]) == ("ü", 3)
    assert changed.endswith(f"  # {comment}\nC = 3\n".encode())
    assert changed.startswith(f"{head}CONST = ".encode())
    ast.parse(changed)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(list("ABCDEFG")), unique=True, min_size=1),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r", "; "]), min_size=8, max_size=8),
    number=st.integers(100, 10**6),
)
def test_other_constants_keep_their_values(names: list[str], ends: list[str], number: int) -> None:
    letters = "ABCDEFG"
    statements = [f"{name}{' ' * i}= {i + 0.5}" for i, name in enumerate(letters)]
    source = "".join(one + end for one, end in zip(statements, ends, strict=False)).rstrip("; ")
    before = read_constants(source)
    changed = read_constants(set_constants(source.encode(), dict.fromkeys(names, number)))
    assert changed == {**before, **dict.fromkeys(names, float(number))}
