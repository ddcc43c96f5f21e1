"""The header of a bundle is read by us: nothing it says may surprise what comes after."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.hub.server.inspection import parse_header
from autohypothesis.hub.server.refusals import BundleError
from autohypothesis.hub.server.settings import HubLimits

LIMITS = HubLimits()
SMALL = HubLimits(heads=3, prerequisites=2, objects=10)
names = st.text("0123456789abcdef", min_size=40, max_size=40)
refs = st.binary(min_size=1, max_size=40).filter(lambda ref: b"\n" not in ref)


def pack(objects: int) -> bytes:
    return b"PACK\0\0\0\2" + objects.to_bytes(4, "big")


def header(heads: list[tuple[str, bytes]], needed: list[str], objects: int = 3) -> bytes:
    lines = [b"# v2 git bundle"]
    lines += [b"-" + one.encode() + b" a comment" for one in needed]
    lines += [name.encode() + b" " + ref for name, ref in heads]
    return b"\n".join(lines) + b"\n\n" + pack(objects)


@given(st.binary(max_size=600))
def test_no_bytes_are_more_than_refused(content: bytes) -> None:
    for start in (content, b"# v2 git bundle\n" + content, b"# v3 git bundle\n" + content):
        try:
            found = parse_header(start, SMALL)
        except BundleError as error:
            assert error.status == 400
        else:
            assert start[found.pack_at : found.pack_at + 4] == b"PACK"
            assert 0 < len(found.heads) <= SMALL.heads and found.objects <= SMALL.objects


@given(
    st.lists(st.tuples(names, refs), min_size=1, max_size=20), st.lists(names, max_size=20),
    st.integers(0, LIMITS.objects), st.binary(max_size=30),
)  # fmt: skip
def test_what_was_written_is_read(
    heads: list[tuple[str, bytes]], needed: list[str], objects: int, rest: bytes
) -> None:
    content = header(heads, needed, objects)
    found = parse_header(content + rest, LIMITS)
    assert found.heads == tuple(dict.fromkeys(name for name, _ in heads))
    assert found.prerequisites == tuple(dict.fromkeys(needed))
    assert (found.objects, found.pack_at) == (objects, len(content) - 12)


@given(st.data())
def test_a_header_that_is_cut_is_refused(data: st.DataObject) -> None:
    content = header([("a" * 40, b"HEAD")], ["b" * 40])
    with pytest.raises(BundleError):
        parse_header(content[: data.draw(st.integers(0, len(content) - 1))], LIMITS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header([], []), "no head"),
        (header([(f"{n:040x}", b"x") for n in range(4)], []), "heads"),
        (header([("a" * 40, b"x")], [f"{n:040x}" for n in range(3)]), "prerequisites"),
        (header([("a" * 40, b"x")], [], objects=11), "objects"),
        (header([("a" * 40, b"x" * 70_000)], []), "bundle"),
        (header([("A" * 40, b"x")], []), "damaged"),
        (b"# v3 git bundle\n@filter=blob:none\n" + b"a" * 40 + b" x\n\n" + pack(1), "filter"),
        (b"# v3 git bundle\n@object-format=sha256\n" + b"a" * 64 + b" x\n\n" + pack(1), "sha256"),
    ],
)
def test_too_much_is_refused_by_name(content: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        parse_header(content, SMALL)
