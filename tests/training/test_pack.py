"""Carrying a preparation to another machine, and what a foreign file could do there."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import script


@pytest.fixture
def packed(cache: Path, tmp_path: Path) -> Path:
    file = tmp_path / "data.tar"
    result = script("prepare.py", "--pack", file, AUTORESEARCH_CACHE=cache)
    assert result.returncode == 0, result.stderr
    return file


def test_what_is_unpacked_equals_what_was_packed(
    prepare: ModuleType, cache: Path, packed: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    result = script("prepare.py", "--unpack", packed, AUTORESEARCH_CACHE=there)
    assert result.returncode == 0, result.stderr
    name = (there / "active").read_text()
    assert name == (cache / "active").read_text()
    here = prepare.read_folder(cache / name.strip())
    assert prepare.read_folder(there / name.strip(), verify=True).manifest == here.manifest
    assert [p.name for p in there.iterdir() if p.name.startswith(".unpack")] == []


def test_a_damaged_preparation_is_not_packed(own_cache: Path, tmp_path: Path) -> None:
    shard = next(own_cache.rglob("shard_00000.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    result = script("prepare.py", "--pack", tmp_path / "x.tar", AUTORESEARCH_CACHE=own_cache)
    assert result.returncode == 1 and str(shard) in result.stderr
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize("damage", ["flipped", "torn"])
def test_a_damaged_pack_changes_nothing(
    prepare: ModuleType, packed: Path, tmp_path: Path, damage: str
) -> None:
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(data if damage == "flipped" else data[:5000])
    said = r"is damaged: .*SHA-256" if damage == "flipped" else r"data\.tar"
    with pytest.raises(prepare.PrepareError, match=said):
        prepare.unpack(packed, tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == [".prepare.lock"]


@pytest.mark.parametrize("kind", ["climbing", "absolute", "link", "stranger"])
def test_a_hostile_pack_writes_nothing_outside(
    prepare: ModuleType, tmp_path: Path, kind: str
) -> None:
    file, there, outside = tmp_path / "evil.tar", tmp_path / "there", tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(file, "w") as tar:

        def add(name: str, link: str | None = None) -> None:
            info = tarfile.TarInfo(name)
            info.size = 0 if link else 4
            info.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
            info.linkname = link or ""
            tar.addfile(info, io.BytesIO(b"evil"))

        if kind == "climbing":
            add("../../outside/evil")
        elif kind == "absolute":
            add(f"{outside}/evil")
        elif kind == "link":
            add("data-0123456789abcdef", link=str(outside))
            add("data-0123456789abcdef/evil")
        else:
            add("whatever/evil")
    with pytest.raises(prepare.PrepareError, match=r"evil\.tar"):
        prepare.unpack(file, there)
    assert list(outside.iterdir()) == []
    assert not (there / "active").exists()
    shutil.rmtree(there)
