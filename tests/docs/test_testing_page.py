"""docs/testing.md names tests that exist, at least one for each guarantee."""

from __future__ import annotations

import re

from tests.conftest import ROOT

NAMED = re.compile(r"`(test_\w+)`")
ROW = re.compile(r"^\| (?!guarantee|fault|---)(.+?) \| (.+) \|$", re.MULTILINE)
DEFINED = re.compile(r"^ *def (test_\w+)", re.MULTILINE)


def test_every_guarantee_names_tests_that_exist() -> None:
    rows = ROW.findall((ROOT / "docs" / "testing.md").read_text(encoding="utf-8"))
    guards = {guarantee: NAMED.findall(tests) for guarantee, tests in rows}
    assert len(guards) == len(rows) and all(guards.values())
    numbers = {int(name.partition(".")[0]) for name in guards if re.match(r"\d+\.", name)}
    assert numbers == set(range(1, 17)), "each invariant of the design has a row"
    files = (ROOT / "tests").rglob("test_*.py")
    defined = {name for path in files for name in DEFINED.findall(path.read_text("utf-8"))}
    named = {name for names in guards.values() for name in names}
    assert named <= defined, sorted(named - defined)
