"""The tables of docs/hardware.md against the code."""

from __future__ import annotations

from dataclasses import asdict, fields
from types import ModuleType

from .conftest import ROOT


def table() -> dict[str, dict[str, str]]:
    """constant -> profile -> cell."""
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    lines = text.split("## Every value of every profile")[1].strip().splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    header = rows[0][1:]
    found = {}
    for row in rows[2:]:
        if len(row) != len(header) + 1:
            break
        found[row[0]] = dict(zip(header, row[1:], strict=True))
    return found


def test_the_table_has_every_constant_of_every_profile(prepare: ModuleType) -> None:
    found = table()
    constants = [field.name for field in fields(prepare.Profile) if field.name != "name"]
    assert list(found) == constants
    for name, profile in prepare.PROFILES.items():
        for constant, value in asdict(profile).items():
            if constant != "name":
                layout = {int: ",", float: "g", str: ""}[type(value)]
                assert found[constant][name] == format(value, layout), (name, constant)


def test_the_widths_are_right(prepare: ModuleType) -> None:
    text = " ".join((ROOT / "docs" / "hardware.md").read_text(encoding="utf-8").split())
    profiles = prepare.PROFILES.values()
    heads = [-(-p.depth * p.aspect_ratio // p.head_dim) for p in profiles]
    widths = [n * p.head_dim for n, p in zip(heads, profiles, strict=True)]
    *first, last = map(str, widths)
    assert f"{', '.join(first)} and {last}" in text
