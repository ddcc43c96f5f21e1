"""Faults between a bare machine and prepared data, and what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import ROOT, python, script

Make = Callable[..., str]


def active(cache: Path) -> Path:
    return cache / (cache / "active").read_text().strip()


@pytest.fixture
def make(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`prepare.py --profile test OPTIONS` in this process; what it complains about."""

    def call(cache: Path, *options: str) -> str:
        monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
        code = prepare.main(["--profile", "test", *options])
        said = capsys.readouterr().err
        return said if code else ""

    return call


def test_a_second_preparation_changes_no_file(make: Make, own_cache: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in active(own_cache).rglob("*")}
    assert make(own_cache) == ""
    assert {p: p.stat().st_mtime_ns for p in active(own_cache).rglob("*")} == before


@pytest.mark.parametrize("missing", [["manifest.json"], ["manifest.json", "tokenizer.json"]])
def test_a_half_finished_preparation_is_finished_alike(
    make: Make, own_cache: Path, missing: list[str]
) -> None:
    folder = active(own_cache)
    whole = json.loads((folder / "manifest.json").read_text())
    for name in missing:
        (folder / name).unlink()
    (folder / "train" / "shard_00000.parquet.part").write_text("torn")
    assert make(own_cache) == ""
    again = json.loads((folder / "manifest.json").read_text())
    assert again | {"created_at": ""} == whole | {"created_at": ""}


def test_a_preparation_killed_after_its_corpus_keeps_the_corpus(
    make: Make, own_cache: Path
) -> None:
    folder = active(own_cache)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (folder / "corpus.json").write_text(json.dumps(manifest))
    (folder / "manifest.json").unlink()
    shard = folder / "train" / "shard_00000.parquet"
    before = shard.stat().st_mtime_ns
    assert make(own_cache) == ""
    assert shard.stat().st_mtime_ns == before
    assert not (folder / "corpus.json").exists()


@pytest.mark.parametrize("name", ["train/shard_00000.parquet", "val.parquet", "manifest.json"])
def test_a_damaged_file_is_refused_by_name(make: Make, own_cache: Path, name: str) -> None:
    """A flipped byte is found by its hash, a shorter file by its size, a torn manifest as JSON."""
    file = active(own_cache) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if name.startswith("train") else data[: len(data) // 2])
    message = make(own_cache)
    assert str(file) in message and "python prepare.py" in message and message.count("\n") == 1
    assert ("SHA-256" in message) == name.startswith("train")
    if name == "val.parquet":  # found without hashing, by who only asks where the data is
        result = script("prepare.py", "--locate", AUTORESEARCH_CACHE=own_cache)
        assert result.returncode == 1 and str(file) in result.stderr and result.stdout == ""


def test_locate_says_what_to_run_when_nothing_is_prepared(tmp_path: Path) -> None:
    result = script("prepare.py", "--locate", "--json", AUTORESEARCH_CACHE=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert str(tmp_path) in result.stderr and "python prepare.py" in result.stderr
    assert result.stderr.count("\n") == 1


def test_locate_answers_without_any_heavy_import(cache: Path, prepare: ModuleType) -> None:
    before = os.times()
    variables = {"AUTORESEARCH_CACHE": cache, "PYTHONPROFILEIMPORTTIME": "1"}
    result = script("prepare.py", "--locate", "--json", **variables)
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert used < 5 * 0.15, "CPU seconds; it takes 0.07"
    assert json.loads(result.stdout)["path"] == str(active(cache))
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "json" in imported
    assert not imported & {"torch", "numpy", "pyarrow", "tiktoken", "rustbpe", "requests", "rich"}


def test_locate_holds_what_the_engine_reads(cache: Path) -> None:
    result = script("prepare.py", "--locate", AUTORESEARCH_CACHE=cache)
    where = json.loads(result.stdout)
    assert where["budget"] == {"seconds": 1.0, "clock": "cpu"} and where["device"] == "cpu"
    assert {"profile_hash", "data_hash", "tokenizer_hash"} <= where.keys()
    assert where["start_allowance_s"] > 0 < where["evaluation_allowance_s"]
    constants = where["constants"]
    assert {"max_seq_len", "vocab_size", "eval_bytes", "eval_tokens", "depth"} <= constants.keys()


def test_autohypothesis_data_beats_the_active_folder(
    make: Make, own_cache: Path, tmp_path: Path
) -> None:
    first = active(own_cache)
    assert make(own_cache, "--seq-len", "16") == ""
    assert active(own_cache) != first
    result = script(
        "prepare.py", "--locate", AUTORESEARCH_CACHE=own_cache, AUTOHYPOTHESIS_DATA=first
    )
    assert json.loads(result.stdout)["path"] == str(first)


def test_another_sequence_length_scales_the_evaluation(prepare: ModuleType) -> None:
    base = prepare.PROFILES["h100"]
    derived = prepare.derive_profile(base, seq_len=512)
    assert derived.name == "h100+seq512" and derived.hash != base.hash
    assert derived.eval_bytes == base.eval_bytes // 4
    assert derived.device_batch_size * 512 == base.device_batch_size * base.seq_len
    assert derived.total_batch_size % (derived.device_batch_size * 512) == 0
    awkward = prepare.derive_profile(base, seq_len=1000, vocab_size=257, budget_seconds=60.0)
    assert awkward.name == "h100+seq1000+vocab257+60s"
    assert awkward.total_batch_size % (awkward.device_batch_size * 1000) == 0


def test_a_longer_evaluation_may_take_longer_and_a_shorter_one_keeps_its_allowance(
    prepare: ModuleType,
) -> None:
    base = prepare.PROFILES["cpu"]
    longer, shorter = (prepare.derive_profile(base, seq_len=n) for n in (512, 16))
    assert longer.eval_bytes == 8 * base.eval_bytes
    assert longer.evaluation_allowance_s == 8 * base.evaluation_allowance_s
    assert shorter.evaluation_allowance_s == base.evaluation_allowance_s


def test_every_profile_keeps_its_own_shape_rules(prepare: ModuleType) -> None:
    for profile in prepare.PROFILES.values():
        constants = {
            "TOTAL_BATCH_SIZE": profile.total_batch_size,
            "DEVICE_BATCH_SIZE": profile.device_batch_size,
            "DEPTH": profile.depth,
            "HEAD_DIM": profile.head_dim,
            "WINDOW_PATTERN": profile.window_pattern,
        }
        assert prepare.shape_problem(constants, profile.seq_len) is None


def test_own_text_of_every_kind_is_read_whole(prepare: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i} " * 500 for i in range(60)))
    lines = [json.dumps({"text": f"line {i} 漢字🙂"}) for i in range(40)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(40)]}), tmp_path / "d.parquet")
    profile = prepare.derive_profile(prepare.PROFILES["test"], source=f"path:{tmp_path}/*.*")
    prepared = prepare.prepare(profile, tmp_path / "cache")
    kept = [t for f in [*prepared.train_files, prepared.val_file] for t in prepare._read_parquet(f)]
    given = [text for _, text in prepare.path_documents(sorted(tmp_path.glob("*.*")))]
    assert sum(len(text) for text in kept) == sum(len(text) for text in given)
    assert any("漢字🙂" in text for text in kept)


def test_validation_text_is_never_trained_on(prepare: ModuleType) -> None:
    prepared = prepare.load_prepared()
    trained = "".join(t for f in prepared.train_files for t in prepare._read_parquet(f))
    for text in prepare._read_parquet(prepared.val_file):
        middle = text[len(text) // 2 :][:200]
        assert middle not in trained or len(set(middle)) < 10


def test_surrogates_and_empty_documents_do_not_stop_a_preparation(
    prepare: ModuleType, tmp_path: Path
) -> None:
    texts = [json.dumps({"text": f"{i} \ud800 text " * (i % 50)}) for i in range(200)]
    (tmp_path / "t.jsonl").write_text("\n".join(texts))
    profile = prepare.derive_profile(prepare.PROFILES["test"], source=f"path:{tmp_path}/t.jsonl")
    assert prepare.prepare(profile, tmp_path / "cache").manifest["validation"]["documents"] > 0


def test_a_bad_line_is_named(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(prepare.PrepareError, match=r"t\.jsonl:2: not a JSON object"):
        list(prepare.path_documents([tmp_path / "t.jsonl"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nowhere"], "known are stdlib"),
        (["--source", "path:/nonexistent/*.txt"], "matches no file"),
        (["--vocab-size", "many"], "--vocab-size many"),
        (["--vocab-size", "200"], "below 257"),
        (["--seq-len", "0"], "--seq-len 0"),
        (["--budget", "-1"], "--budget -1"),
        (["--num-shards", "2"], "stdlib is not downloaded"),
        (["--source", "climbmix", "--num-shards", "-2"], "--num-shards -2"),
    ],
)
def test_a_wrong_option_is_named(
    make: Make, tmp_path: Path, options: list[str], message: str
) -> None:
    said = make(tmp_path, *options)
    assert message in said and said.count("\n") == 1


def test_bytes_are_a_vocabulary(prepare: ModuleType, tmp_path: Path) -> None:
    tokenizer = prepare.Tokenizer.train([], 257)
    assert tokenizer.vocab_size == 257 and len(tokenizer.encode("é🙂")) == 6


def test_the_original_tools_files_are_left_alone(make: Make, own_cache: Path) -> None:
    for name in ("data/shard_00000.parquet", "tokenizer/tokenizer.pkl"):
        (own_cache / name).parent.mkdir()
        (own_cache / name).write_text("theirs")
    assert make(own_cache, "--budget", "2") == ""
    assert (own_cache / "data/shard_00000.parquet").read_text() == "theirs"
    assert (own_cache / "tokenizer/tokenizer.pkl").read_text() == "theirs"


def test_published_names_follow_the_active_data(prepare: ModuleType) -> None:
    assert prepare.MAX_SEQ_LEN == 32 and prepare.TIME_BUDGET == 1.0 and prepare.VOCAB_SIZE == 512
    assert prepare.load_prepared().manifest["validation"]["tokens"] == prepare.EVAL_TOKENS
    with pytest.raises(AttributeError):
        _ = prepare.MAX_SEQ_LENGTH


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_threads_are_one_unless_the_environment_says_otherwise(
    cache: Path, given: dict[str, str], expected: str
) -> None:
    code = "import os, prepare; prepare.load_profile(); print(os.environ['OMP_NUM_THREADS'])"
    result = python("-c", code, cwd=ROOT, AUTORESEARCH_CACHE=cache, **given)
    assert result.stdout.strip() == expected
