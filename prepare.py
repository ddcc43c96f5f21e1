"""The fixed half of the training pair: profiles, data, tokenizer, loader, clock and evaluation.

`python prepare.py` makes everything a training run reads; a search never edits this file.
`train.py` imports it for the profile, the tokens, the clock and an advisory evaluation; the engine
runs it again in a fresh process (`--score`) for the number that counts.

    <cache>/                      $AUTORESEARCH_CACHE, else ~/.cache/autoresearch
        active                    the name of the folder that was prepared last
        shards/<repository>/      downloads, shared by all preparations of one source
        <source>-<hash>/          one preparation; the hash covers source and profile constants
            train/shard_00000.parquet ...   text to train on, column `text`
            val.parquet                     the validation documents, fixed
            val.npy                         the same in tokens, for the scorer
            tokenizer.json                  the bytes of every token
            manifest.json                   profile, hashes, validation bytes; written last

`$AUTOHYPOTHESIS_DATA` names a prepared folder and overrides `active` for every reader.
Only the standard library is imported here: `--locate` answers before torch would have loaded.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import math
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap
    import random
    import socket
    from types import ModuleType

    import numpy as np
    import torch

    Tokens = np.ndarray[Any, np.dtype[np.integer[Any]]]
    Batch = tuple[torch.Tensor, torch.Tensor, int]

FORMAT = 1  # of the prepared folder; raised when an older reader would misread it


class PrepareError(RuntimeError):
    """Data cannot be prepared or read; the message names the thing and the next command."""


class NotPreparedError(PrepareError):
    """There is no complete preparation to read."""


class DamagedError(PrepareError):
    """A prepared file is not what its manifest says."""


class EvaluationError(RuntimeError):
    """A model cannot be scored. `kind`: peeking, not_finite, weights, shape, build_model, timeout,
    or host: its process ended, or did not keep to the questions."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# ---------------------------------------------------------------------------------------------
# Profiles: every constant that depends on the machine


@dataclass(frozen=True)
class Profile:
    """The constants of one kind of machine. docs/hardware.md lists all values."""

    name: str
    device: str  # "cpu" or "cuda"
    clock: str  # "cpu": CPU seconds of the process; "wall": seconds, on a device leased alone
    budget_seconds: float
    source: str
    num_shards: int  # training shards of a downloaded source; -1 is all
    train_bytes: int  # where a local source stops; 0 takes all
    eval_bytes: int  # at most so many UTF-8 bytes of validation documents
    tokenizer_bytes: int  # of training text that the vocabulary is learned from
    vocab_size: int  # with BOS
    seq_len: int  # tokens a row
    depth: int
    aspect_ratio: int  # width = depth x aspect_ratio, rounded up to whole heads
    head_dim: int
    window_pattern: str  # a letter a layer, repeated: S half a row, L the whole row
    total_batch_size: int  # tokens an optimizer step
    device_batch_size: int  # rows a forward pass
    eval_batch_size: int  # rows a forward pass of the evaluation
    buffer_tokens: int  # that the loader holds to pack rows from
    threads: int  # 0 leaves the choice to torch
    start_allowance_s: float  # for import, compilation and warm-up, generously
    evaluation_allowance_s: float  # for one evaluation, generously

    @property
    def hash(self) -> str:
        """Only runs that agree in it compare. Allowances change no result and are left out."""
        constants = {k: v for k, v in asdict(self).items() if not k.endswith("_allowance_s")}
        return _hash(constants)


_H100 = Profile(
    name="h100", device="cuda", clock="wall", budget_seconds=300.0, source="climbmix",
    num_shards=10, train_bytes=0, eval_bytes=40_000_000, tokenizer_bytes=200_000_000,
    vocab_size=8192, seq_len=2048, depth=8, aspect_ratio=64, head_dim=128, window_pattern="SSSL",
    total_batch_size=2**19, device_batch_size=128, eval_batch_size=64, buffer_tokens=2**19,
    threads=0, start_allowance_s=300.0, evaluation_allowance_s=180.0,
)  # fmt: skip
_A100 = replace(
    _H100, name="a100-40gb", eval_bytes=20_000_000, total_batch_size=2**18,
    device_batch_size=64, eval_batch_size=32,
)  # fmt: skip
_RTX4090 = replace(
    _A100, name="rtx4090", num_shards=6, eval_bytes=10_000_000, depth=6, total_batch_size=2**17,
    device_batch_size=32, eval_batch_size=16, buffer_tokens=2**18,
)  # fmt: skip
_SMALL_GPU = replace(
    _RTX4090, name="small-gpu", source="tinystories", num_shards=1, eval_bytes=4_000_000,
    tokenizer_bytes=50_000_000, vocab_size=4096, seq_len=512, depth=4, head_dim=64,
    window_pattern="L", total_batch_size=2**15, eval_batch_size=32,
)  # fmt: skip
_CPU = replace(
    _SMALL_GPU, name="cpu", device="cpu", clock="cpu", budget_seconds=15.0, source="stdlib",
    eval_bytes=320_000, tokenizer_bytes=20_000_000, vocab_size=2048, seq_len=64, depth=3,
    aspect_ratio=32, head_dim=32, total_batch_size=1024, device_batch_size=16,
    eval_batch_size=64, buffer_tokens=2**15, threads=1,
    start_allowance_s=60.0, evaluation_allowance_s=60.0,
)  # fmt: skip
_TEST = replace(
    _CPU, name="test", budget_seconds=1.0, train_bytes=1_500_000, eval_bytes=48_000,
    tokenizer_bytes=500_000, vocab_size=512, seq_len=32, depth=2, aspect_ratio=16, head_dim=16,
    total_batch_size=256, device_batch_size=8, buffer_tokens=2**13, evaluation_allowance_s=30.0,
)  # fmt: skip
PROFILES = {p.name: p for p in (_H100, _A100, _RTX4090, _SMALL_GPU, _CPU, _TEST)}


def choose_profile() -> tuple[str, str]:
    """The profile for the first GPU that CUDA shows, by its memory, and why; without one "cpu".

    Apple silicon, ROCm and TPU are "cpu" too: no profile of theirs exists yet.
    """
    try:
        import torch
    except ImportError as error:
        message = f"torch cannot be imported ({error}); install it, or name a profile: --profile"
        raise PrepareError(message) from None
    version = torch.__version__
    if torch.version.hip:
        return "cpu", f"torch {version} is built for ROCm, which has no profile yet"
    if not torch.version.cuda:
        return "cpu", f"torch {version} is built without CUDA"
    if not torch.cuda.is_available():
        return "cpu", f"torch {version} sees no CUDA device"
    gpu = torch.cuda.get_device_properties(0)
    gigabytes = gpu.total_memory / 1e9
    seen = f"{gpu.name} has {gigabytes:.0f} GB"
    if gpu.major < 8:
        return "small-gpu", f"{seen}, and is older than Ampere"
    if gigabytes < 22:
        return "small-gpu", seen
    return "h100" if gigabytes > 70 else "a100-40gb" if gigabytes > 38 else "rtx4090", seen


def derive_profile(base: Profile, **changes: Any) -> Profile:
    """`base` with other constants; a change of shape or budget shows in the name.

    Another `seq_len` keeps the tokens of a forward pass, and scales the evaluation alongside: who
    shortens the rows has a smaller machine, and would else evaluate for longer than he trains.
    """
    changes = {k: v for k, v in changes.items() if v is not None and v != getattr(base, k)}
    name = base.name
    if seq_len := changes.get("seq_len"):
        name += f"+seq{seq_len}"
        rows = max(1, base.device_batch_size * base.seq_len // seq_len)
        changes["device_batch_size"] = rows
        changes["eval_batch_size"] = max(1, base.eval_batch_size * base.seq_len // seq_len)
        steps = max(1, base.total_batch_size // (rows * seq_len))
        changes["total_batch_size"] = steps * rows * seq_len
        changes["eval_bytes"] = max(1, base.eval_bytes * seq_len // base.seq_len)
        longer = max(1.0, seq_len / base.seq_len)  # and a longer evaluation may take its time
        changes["evaluation_allowance_s"] = base.evaluation_allowance_s * longer
    if vocab_size := changes.get("vocab_size"):
        name += f"+vocab{vocab_size}"
    if budget := changes.get("budget_seconds"):
        name += f"+{budget:g}s"
    return replace(base, **{**changes, "name": name})


# ---------------------------------------------------------------------------------------------
# The prepared folder


@dataclass(frozen=True)
class Prepared:
    """A complete preparation: its folder, what the manifest says, and the profile in it."""

    path: Path
    manifest: dict[str, Any]
    profile: Profile

    @property
    def train_files(self) -> list[Path]:
        return [self.path / name for name in self.manifest["files"] if name.startswith("train/")]

    @property
    def val_file(self) -> Path:
        return self.path / "val.parquet"

    def locate(self) -> dict[str, Any]:
        """Return what the engine must know of the active data, as JSON values."""
        profile, validation = self.profile, self.manifest["validation"]
        return {
            "path": str(self.path),
            "profile": profile.name,
            "profile_hash": profile.hash,
            "data_hash": self.manifest["data_hash"],
            "tokenizer_hash": self.manifest["tokenizer_hash"],
            "budget": {"seconds": profile.budget_seconds, "clock": profile.clock},
            "device": profile.device,
            "start_allowance_s": profile.start_allowance_s,
            "evaluation_allowance_s": profile.evaluation_allowance_s,
            "held_out": [self.val_file.name, "val.npy"],
            "constants": {
                **asdict(profile),
                "max_seq_len": profile.seq_len,
                **{f"eval_{what}": count for what, count in validation.items()},
            },
        }


def cache_folder() -> Path:
    chosen = os.environ.get("AUTORESEARCH_CACHE") or "~/.cache/autoresearch"
    return Path(chosen).expanduser().absolute()


def load_prepared(*, verify: bool = False) -> Prepared:
    """The active preparation. Sizes are always checked, with `verify` the SHA-256 too."""
    if folder := os.environ.get("AUTOHYPOTHESIS_DATA"):
        return read_folder(Path(folder).absolute(), verify=verify)
    cache = cache_folder()
    try:
        name = (cache / "active").read_text(encoding="utf-8").strip()
    except OSError:
        message = f"nothing is prepared in {cache}; run: python prepare.py"
        raise NotPreparedError(message) from None
    return read_folder(cache / name, verify=verify)


def read_folder(path: Path, *, verify: bool = False) -> Prepared:
    """The preparation in `path`; NotPreparedError when it is incomplete."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise PrepareError(f"{file} has another format than {FORMAT}; run: python prepare.py")
        prepared = Prepared(path, manifest, Profile(**manifest["profile"]))
    except OSError:
        raise NotPreparedError(f"{file} cannot be read; run: python prepare.py") from None
    except (ValueError, TypeError, KeyError) as error:
        raise _damage(path, "manifest.json", f"it cannot be read ({error!r})") from None
    _check_files(path, manifest["files"], verify=verify)
    return prepared


def _check_files(folder: Path, files: dict[str, dict[str, Any]], *, verify: bool) -> None:
    for name, recorded in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise _damage(folder, name, "it is missing") from None
        if size != recorded["size"]:
            raise _damage(folder, name, f"it has {size} bytes, {recorded['size']} were written")
        if verify and _file_hash(folder / name) != recorded["sha256"]:
            raise _damage(folder, name, "its SHA-256 is not the one that was recorded")


def _damage(folder: Path, name: str, why: str) -> DamagedError:
    cure = f"remove {folder} and run: python prepare.py"
    return DamagedError(f"{folder / name} is damaged: {why}; {cure}")


def load_profile() -> Profile:
    """The profile of the active data. To be called before torch is imported."""
    profile = load_prepared().profile
    settle_process(profile)
    return profile


def settle_process(profile: Profile) -> None:
    """On a CPU profile sets thread counts, where the environment has none, and keeps memory.

    The CPU clock runs twice as fast for two threads. And glibc gives every large block back to
    the kernel and faults it in again: a third of a small training, and the least steady part.
    """
    if not profile.threads:
        return
    for library in ("OMP", "MKL", "OPENBLAS", "RAYON"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(profile.threads))
    if "torch" in sys.modules:  # too late for the variables
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        import ctypes

        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 1 << 30)


def __getattr__(name: str) -> Any:
    """The published constants, read from the active preparation when they are asked for."""
    if name == "EVAL_TOKENS":
        return load_prepared().manifest["validation"]["tokens"]
    published = {"MAX_SEQ_LEN": "seq_len", "TIME_BUDGET": "budget_seconds"}
    published["VOCAB_SIZE"] = "vocab_size"
    if name in published:
        return getattr(load_prepared().profile, published[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _hash(value: Any) -> str:
    """16 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or absent: write beside, fsync, rename."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One writer at a time in a cache; the lock ends with its process."""
    import fcntl

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------
# Sources: documents with a key, whose hash decides between training and validation

HUB_SOURCES = {
    "climbmix": "karpathy/climbmix-400b-shuffle",
    "fineweb-edu": "karpathy/fineweb-edu-100b-shuffle",
    "tinystories": "karpathy/tinystories-gpt4-clean",
}
SHARD_BYTES = 1 << 28  # of a training shard that is written here; the unit of shuffling
DOCUMENT_CHARACTERS = 16_000  # where a .txt file is cut, at blank lines
Document = tuple[str, str]  # key, text


def stdlib_documents() -> Iterator[Document]:
    """Python's own library without tests and installed packages, in the order of hashed paths."""
    import sysconfig

    root = Path(sysconfig.get_path("stdlib"))
    excluded = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    keys = [path.as_posix() for path in paths if not excluded & set(path.parts)]
    if not keys:
        raise PrepareError(f"no sources in {root}; run: python prepare.py --source path:GLOB")
    for key in sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest()):
        yield key, (root / key).read_text(encoding="utf-8", errors="replace")


def path_documents(files: Iterable[Path]) -> Iterator[Document]:
    """The user's .txt, .jsonl (key "text") and .parquet (column "text") files, keyed by text."""
    for file in files:
        if file.suffix == ".parquet":
            yield from ((text, text) for text in _read_parquet(file))
        elif file.suffix == ".jsonl":
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        text = str(json.loads(line)["text"])
                    except (ValueError, KeyError, TypeError):
                        problem = 'not a JSON object with a "text"'
                        raise PrepareError(f"{file}:{number}: {problem}") from None
                    yield text, text
        elif file.suffix == ".txt":
            held, length = [], 0
            for paragraph in file.read_text(encoding="utf-8", errors="replace").split("\n\n"):
                held.append(paragraph)
                length += len(paragraph)
                if length >= DOCUMENT_CHARACTERS:
                    yield "\n\n".join(held), "\n\n".join(held)
                    held, length = [], 0
            yield "\n\n".join(held), "\n\n".join(held)
        else:
            raise PrepareError(f"{file}: only .txt, .jsonl and .parquet can be read")


def _matching_files(pattern: str) -> list[Path]:
    import glob

    paths = [Path(p).absolute() for p in glob.glob(os.path.expanduser(pattern), recursive=True)]
    files = sorted(path for path in paths if path.is_file())
    if not files:
        raise PrepareError(f"--source path:{pattern} matches no file")
    return files


def _read_parquet(path: Path) -> Iterator[str]:
    """The texts of one shard, a row group at a time."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise PrepareError(f"{path}: no column `text`, only {', '.join(file.schema_arrow.names)}")
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, columns=["text"]).column(0).to_pylist()


class _Corpus:
    """Collects training shards and validation documents in a folder; every file whole or absent."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.folder, self.profile = folder, profile
        self.shards: list[str] = []
        self.held: list[str] = []  # training text of the next shard
        self.held_bytes = self.train_bytes = self.val_bytes = 0
        self.val: list[str] = []
        self.digest = hashlib.sha256()  # of the text: parquet bytes differ between versions

    def train(self, text: str) -> None:
        """Cut to pieces, to be shuffled: a run of seconds would else see a few long files."""
        size = len(text.encode())
        # About two rows long, a token being about four characters.
        self.held.extend(_pieces(text, 2 * 4 * self.profile.seq_len))
        self.held_bytes += size
        self.train_bytes += size
        if self.held_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        import random

        if self.held:
            random.Random(len(self.shards)).shuffle(self.held)
            self._digest(self.held)
            self._save(self._next_shard(), self.held)
            self.held, self.held_bytes = [], 0

    def link(self, shard: Path) -> None:
        """A downloaded training shard as it is: a hard link, or a copy where there are none."""
        import shutil

        target = self.folder / self._next_shard()
        target.unlink(missing_ok=True)
        try:
            os.link(shard, target)
        except OSError:
            shutil.copyfile(shard, target)
        self.digest.update(_file_hash(target).encode())

    def validate(self, text: str) -> None:
        """A whole document, unless it would exceed the bytes to evaluate."""
        size = len(text.encode())
        if text and self.val_bytes + size <= self.profile.eval_bytes:
            self.val.append(text)
            self.val_bytes += size

    def finish(self) -> dict[str, Any]:
        self.flush()
        if not self.shards or not self.val:
            raise PrepareError(f"{self.profile.source}: too little text to train and to validate")
        self._digest(self.val)
        self._save("val.parquet", self.val)
        names = [*self.shards, "val.parquet"]
        return {
            "data_hash": self.digest.hexdigest()[:16],
            "validation": {"bytes": self.val_bytes, "documents": len(self.val)},
            "files": {name: _describe(self.folder / name) for name in names},
        }

    def _next_shard(self) -> str:
        self.shards.append(f"train/shard_{len(self.shards):05d}.parquet")
        (self.folder / "train").mkdir(exist_ok=True)
        return self.shards[-1]

    def _digest(self, texts: list[str]) -> None:
        for data in (text.encode() for text in texts):
            self.digest.update(len(data).to_bytes(8, "big") + data)

    def _save(self, name: str, texts: list[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        part = self.folder / f"{name}.part"
        # Small groups: the training decodes them on its own clock, one at a time.
        pq.write_table(pa.table({"text": texts}), part, row_group_size=256)
        part.replace(self.folder / name)


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _file_hash(path)}


def _pieces(text: str, length: int) -> Iterator[str]:
    """`text` cut into pieces of `length` characters and up to as many more, to end with a line."""
    start = 0
    while len(text) - start > 2 * length:
        end = text.find("\n", start + length, start + 2 * length) + 1 or start + 2 * length
        yield text[start:end]
        start = end
    yield text[start:]


def _split_corpus(documents: Iterable[Document], folder: Path, profile: Profile) -> dict[str, Any]:
    """One document in ten may validate, the others train. Equal keys stay on one side."""
    corpus = _Corpus(folder, profile)
    for key, text in documents:
        digest = hashlib.sha256(key.encode("utf-8", errors="replace")).digest()
        text = text.encode("utf-8", errors="replace").decode("utf-8")  # no lone surrogates
        if int.from_bytes(digest[:4], "big") % 10 == 0:
            corpus.validate(text)
        elif text and not (profile.train_bytes and corpus.train_bytes >= profile.train_bytes):
            corpus.train(text)
    return corpus.finish()


def _hub_corpus(repo: str, folder: Path, profile: Profile, workers: int) -> dict[str, Any]:
    """The first shards train and the last of the dataset validates; a single file is split."""
    shards = folder.parent / "shards" / repo.replace("/", "--")
    *train, last = hub_files(repo)
    if profile.num_shards >= 0:
        train = train[: profile.num_shards]
    download_all([*train, last], shards, workers)
    if not train:
        return _split_corpus(path_documents([shards / last.path]), folder, profile)
    corpus = _Corpus(folder, profile)
    for file in train:
        corpus.link(shards / file.path)
    for text in _read_parquet(shards / last.path):
        corpus.validate(text)
        if corpus.val_bytes > 0.99 * profile.eval_bytes:
            break
    return corpus.finish()


# ---------------------------------------------------------------------------------------------
# Downloads from a dataset hub: parallel, resumed, retried, checked

ATTEMPTS = 5  # in a row without progress


@dataclass(frozen=True)
class RemoteFile:
    path: str
    url: str
    size: int
    sha256: str | None  # the hub knows it for large files only


def _session() -> Any:
    """A requests session that asks again while the server is at fault. $HF_TOKEN opens gates."""
    import requests
    from urllib3.util import Retry

    retry = Retry(ATTEMPTS, backoff_factor=0.25, status_forcelist=(429, 500, 502, 503, 504))
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
    if token := os.environ.get("HF_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    return session


def hub_files(repo: str) -> list[RemoteFile]:
    """The parquet files of a dataset in the order of their paths. $HF_ENDPOINT is the server."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url: str | None = f"{endpoint}/api/datasets/{repo}/tree/main?recursive=true"
    files = []
    while url:
        entries, links = _listing(url)
        for entry in entries:
            if entry["type"] == "file" and entry["path"].endswith(".parquet"):
                if ".." in Path(entry["path"]).parts or entry["path"].startswith("/"):
                    raise PrepareError(f"{url}: refused, the path {entry['path']} leads elsewhere")
                where = f"{endpoint}/datasets/{repo}/resolve/main/{entry['path']}"
                checksum = (entry.get("lfs") or {}).get("oid")
                files.append(RemoteFile(entry["path"], where, entry["size"], checksum))
        url = links.get("next", {}).get("url")
    if not files:
        raise PrepareError(f"{repo} at {endpoint} has no parquet file")
    return sorted(files, key=lambda file: file.path)


def _listing(url: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """One page of a dataset's files, and the links to others."""
    import requests

    for attempt in range(ATTEMPTS):
        time.sleep(0.25 * (2**attempt - 1))
        try:
            response = _session().get(url, timeout=30)
            response.raise_for_status()
            return response.json(), response.links
        except requests.HTTPError as error:
            raise PrepareError(f"{error}; is the name right, and HF_TOKEN set?") from None
        except (OSError, ValueError) as error:  # a connection broke, or the answer is no JSON
            problem = error
    raise PrepareError(f"{url}: {problem}; the same command tries again")


def download(file: RemoteFile, target: Path, advance: Callable[[int], None]) -> None:
    """`file` to `target`; a broken transfer is resumed, a wrong checksum starts over.

    `advance(n)` is told of every n bytes, and of -n when they are thrown away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    advance(have)
    fruitless, problem = 0, ""
    while fruitless < ATTEMPTS:
        before = have
        try:
            if have < file.size:
                headers = {"Range": f"bytes={have}-"} if have else {}
                response = _session().get(file.url, headers=headers, stream=True, timeout=30)
                if response.status_code in (401, 403, 404):
                    raise PrepareError(f"{file.url}: HTTP {response.status_code}")
                response.raise_for_status()
                if have and response.status_code != 206:  # the server starts over
                    advance(-have)
                    have = 0
                with part.open("ab" if have else "wb") as out:
                    for block in response.iter_content(1 << 16):
                        out.write(block)
                        have += len(block)
                        advance(len(block))
        except OSError as error:  # what requests raises is one
            problem = str(error)
        if have == file.size and file.sha256 in (None, _file_hash(part)):
            part.replace(target)
            return
        if have >= file.size:
            problem = f"{have} bytes arrived, and their SHA-256 is not {file.sha256}"
            part.unlink()
            advance(-have)
            have = before = 0
        fruitless = 0 if have > before else fruitless + 1
        time.sleep(0.25 * 2**fruitless)
    raise PrepareError(f"{file.url}: {problem}; the same command resumes")


def download_all(files: list[RemoteFile], folder: Path, workers: int) -> None:
    """Those of `files` that `folder` lacks, `workers` at a time, with a progress bar."""
    import shutil
    from concurrent.futures import ThreadPoolExecutor

    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        present = folder / file.path
        if present.exists() and file.sha256 not in (None, _file_hash(present)):
            raise DamagedError(f"{present} is damaged; remove it and run: python prepare.py")
    missing = [file for file in files if not (folder / file.path).exists()]
    need, free = sum(file.size for file in missing), shutil.disk_usage(folder).free
    if need > free:
        raise PrepareError(f"{folder}: {need / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free")
    with (
        Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        task = bar.add_task("shards", total=need)

        def fetch(file: RemoteFile) -> None:
            download(file, folder / file.path, lambda n: bar.update(task, advance=n))

        jobs = [pool.submit(fetch, file) for file in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------
# Tokenizer

# GPT-4's split of text into words, but digits in pairs: a small vocabulary has no room for triples.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Byte-pair encoding: learned by rustbpe, served by tiktoken, stored as plain bytes."""

    def __init__(self, tokens: list[bytes]) -> None:
        import tiktoken

        self.tokens = tokens
        self.bos = len(tokens)
        self.vocab_size = len(tokens) + 1
        self.token_bytes = [len(token) for token in tokens] + [0]  # BOS stands for no text
        self._encoding = tiktoken.Encoding(
            name="autoresearch",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={"<|bos|>": self.bos},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A vocabulary of `vocab_size` with BOS; smaller where the text has no pairs left."""
        import rustbpe

        if vocab_size < 257:
            raise PrepareError(f"--vocab-size {vocab_size} is below 257, all bytes and BOS")
        if vocab_size == 257:
            return cls([bytes([value]) for value in range(256)])
        learner = rustbpe.Tokenizer()
        learner.train_from_iterator(iter(texts), vocab_size - 1, pattern=SPLIT_PATTERN)
        ranked = sorted(learner.get_mergeable_ranks(), key=lambda pair: pair[1])
        return cls([bytes(token) for token, _ in ranked])

    @classmethod
    def load(cls, folder: Path | None = None) -> Tokenizer:
        """The tokenizer of a prepared folder, by default of the active one."""
        folder = folder or load_prepared().path
        try:
            stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            tokens = [base64.b64decode(token) for token in stored["tokens"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _damage(folder, "tokenizer.json", f"it cannot be read ({error!r})") from None
        return cls(tokens)

    @classmethod
    def from_directory(cls, folder: str | Path | None = None) -> Tokenizer:
        """`load`, by its published name."""
        return cls.load(Path(folder) if folder else None)

    def get_vocab_size(self) -> int:
        return self.vocab_size

    def get_bos_token_id(self) -> int:
        return self.bos

    def save(self, folder: Path) -> None:
        encoded = [base64.b64encode(token).decode() for token in self.tokens]
        text = json.dumps({"pattern": SPLIT_PATTERN, "tokens": encoded})
        _write(folder / "tokenizer.json", text)

    def encode(self, text: str, prepend: int | None = None) -> Tokens:
        """Token ids of `text`, behind the token `prepend` if there is one, without BOS otherwise.

        Text that spells a special token is plain text.
        """
        import numpy as np

        tokens = self._encoding.encode_ordinary(text)
        if prepend is not None:
            tokens.insert(0, prepend)
        return np.array(tokens, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return self._encoding.decode(list(tokens))


# ---------------------------------------------------------------------------------------------
# Preparing


def prepare(
    profile: Profile, cache: Path, workers: int = 8, *, download: bool = True
) -> Prepared | None:
    """Makes the folder of `profile`, or finishes or checks it, and makes it the active one.

    None, and nothing is changed, where it would have to be downloaded and may not be.
    """
    kind, _, rest = profile.source.partition(":")
    settings: dict[str, Any] = {"format": FORMAT, "profile": asdict(profile)}
    documents: Callable[[], Iterator[Document]] | None = None  # of a local source
    if kind == "stdlib":
        settings["python"] = list(sys.version_info[:3])
        documents = stdlib_documents
    elif kind == "path":
        files = _matching_files(rest)
        settings["files"] = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        documents = lambda: path_documents(files)  # noqa: E731
    elif kind != "hf" and kind not in HUB_SOURCES:
        known = ", ".join(["stdlib", *HUB_SOURCES, "hf:REPO", "path:GLOB"])
        raise PrepareError(f"--source {profile.source} is unknown; known are {known}")
    slug = re.sub(r"[^a-z0-9]+", "-", profile.source.lower()).strip("-")[-40:]
    folder = cache / f"{slug}-{_hash(settings)}"

    def corpus() -> dict[str, Any]:
        if documents:
            return _split_corpus(documents(), folder, profile)
        return _hub_corpus(HUB_SOURCES.get(kind, rest), folder, profile, workers)

    with _locked(cache):
        try:
            prepared = read_folder(folder, verify=True)
        except NotPreparedError:
            if documents is None and not download:
                return None
            prepared = _finish(folder, profile, corpus)
        _write(cache / "active", folder.name + "\n")
    return prepared


def _finish(folder: Path, profile: Profile, make: Callable[[], dict[str, Any]]) -> Prepared:
    """Corpus, tokenizer, manifest, in this order; what an earlier attempt finished is kept."""
    folder.mkdir(exist_ok=True)
    record = folder / "corpus.json"
    if record.exists():
        corpus = json.loads(record.read_text(encoding="utf-8"))
        _check_files(folder, corpus["files"], verify=True)
    else:
        print(f"reading {profile.source} ...", flush=True)
        corpus = make()
        _write(record, json.dumps(corpus))
    files = dict(corpus["files"])
    if not (folder / "tokenizer.json").exists():
        print(f"learning {profile.vocab_size} tokens ...", flush=True)
        shards = [folder / name for name in files if name.startswith("train/")]
        texts = _first_characters(shards, profile.tokenizer_bytes)
        Tokenizer.train(texts, profile.vocab_size).save(folder)
    tokenizer = Tokenizer.load(folder)
    files["tokenizer.json"] = _describe(folder / "tokenizer.json")
    tokens = _save_validation_tokens(folder, tokenizer)
    files["val.npy"] = _describe(folder / "val.npy")
    manifest = {
        "format": FORMAT,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": asdict(replace(profile, vocab_size=tokenizer.vocab_size)),
        "data_hash": corpus["data_hash"],
        "tokenizer_hash": files["tokenizer.json"]["sha256"][:16],
        "validation": corpus["validation"]
        | {"tokens": len(tokens) - corpus["validation"]["documents"]},
        "files": files,
    }
    _write(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    record.unlink()
    return read_folder(folder)


def _save_validation_tokens(folder: Path, tokenizer: Tokenizer) -> Tokens:
    """Writes val.npy: BOS and the tokens of each validation document, one after the other."""
    import numpy as np

    sizes, bos = np.array(tokenizer.token_bytes), np.array([tokenizer.bos])
    parts: list[Tokens] = []
    for text in _read_parquet(folder / "val.parquet"):
        parts += [bos, tokenizer.encode(text)]
        if sizes[parts[-1]].sum() != len(text.encode()):
            raise _damage(folder, "tokenizer.json", "it loses bytes of validation text")
    tokens = np.concatenate(parts).astype(np.int32)
    with contextlib.suppress(OSError):
        part = folder / f"val.{os.getpid()}.part.npy"
        np.save(part, tokens)
        part.replace(folder / "val.npy")
    return tokens


def validation_tokens(prepared: Prepared) -> Tokens:
    """The content of val.npy. A folder of an earlier version gets it now, if it can be written."""
    import numpy as np

    folder, files = prepared.path, prepared.manifest["files"]
    if "val.npy" in files:
        return np.load(folder / "val.npy", allow_pickle=False)  # type: ignore[no-any-return]
    tokens = _save_validation_tokens(folder, Tokenizer.load(folder))
    with contextlib.suppress(OSError):
        more = {"files": files | {"val.npy": _describe(folder / "val.npy")}}
        _write(folder / "manifest.json", json.dumps(prepared.manifest | more, indent=1) + "\n")
    return tokens


def _first_characters(shards: list[Path], limit: int) -> Iterator[str]:
    """The first `limit` characters of the training text, at most 10,000 from one document."""
    for text in (text[:10_000] for shard in shards for text in _read_parquet(shard)):
        if limit <= 0:
            return
        yield text
        limit -= len(text)


def pack(file: Path) -> Prepared:
    """The active preparation as one tar file, for another machine; verified first."""
    import tarfile

    prepared = load_prepared(verify=True)
    part = file.with_name(file.name + ".part")
    with tarfile.open(part, "w") as tar:
        for name in ["manifest.json", *prepared.manifest["files"]]:
            tar.add(prepared.path / name, f"{prepared.path.name}/{name}")
    part.replace(file)
    return prepared


def unpack(file: Path, cache: Path) -> Prepared:
    """A packed preparation into the cache; verified, and made the active one."""
    import shutil
    import tarfile
    import tempfile

    if not hasattr(tarfile, "data_filter"):
        raise PrepareError("this Python unpacks foreign files unsafely; use 3.10.12 or newer")
    with _locked(cache), tempfile.TemporaryDirectory(dir=cache, prefix=".unpack-") as temporary:
        try:
            with tarfile.open(file) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise PrepareError(f"{file} cannot be unpacked: {error}") from None
        inside = os.listdir(temporary)
        if len(inside) != 1 or not re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{16}", inside[0]):
            raise PrepareError(f"{file} does not hold one preparation, but {inside}")
        try:
            read_folder(Path(temporary, inside[0]), verify=True)
        except PrepareError as error:
            raise PrepareError(f"{file} is damaged: {error}") from None
        folder = cache / inside[0]
        shutil.rmtree(folder, ignore_errors=True)
        Path(temporary, inside[0]).rename(folder)
        _write(cache / "active", folder.name + "\n")
    return read_folder(folder)


# ---------------------------------------------------------------------------------------------
# Budget clock


class Clock:
    """The budget of one training. It starts before the first token is drawn.

    "cpu" counts the CPU seconds of this process, all threads together; "wall" counts seconds.
    Start and stop are appended to `$AUTOHYPOTHESIS_RUN_DIR/clock.jsonl`, where the parent compares
    them with the kernel's own account; by hand nothing is written.
    """

    running = False  # any clock of this process has started

    def __init__(self, budget_seconds: float | None = None, kind: str | None = None) -> None:
        profile = load_prepared().profile
        self.budget_seconds = profile.budget_seconds if budget_seconds is None else budget_seconds
        self.kind = kind or profile.clock
        self._now = time.process_time if self.kind == "cpu" else time.monotonic
        self._start: float | None = None
        self._stop: float | None = None

    def start(self) -> None:
        Clock.running = True
        self._start = self._now()
        _record("start", clock=self.kind, budget_seconds=self.budget_seconds)

    def stop(self) -> float:
        """Seconds of its own kind since the start, final."""
        self._stop = self._now()
        more = {"budget_seconds": self.budget_seconds, "elapsed": self.elapsed}
        _record("stop", clock=self.kind, **more)
        return self.elapsed

    @property
    def elapsed(self) -> float:
        if self._start is None:
            return 0.0
        return (self._now() if self._stop is None else self._stop) - self._start

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, 0 to 1."""
        return min(1.0, self.elapsed / self.budget_seconds)


def _record(event: str, **more: Any) -> None:
    folder = os.environ.get("AUTOHYPOTHESIS_RUN_DIR")
    if not folder:
        return
    now = {"wall": time.time(), "monotonic": time.monotonic(), "cpu": time.process_time()}
    line = json.dumps({"event": event, "pid": os.getpid(), **now, **more}) + "\n"
    file = os.open(Path(folder, "clock.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line.encode())  # one write: a reader never sees half a line
    finally:
        os.close(file)


def get_token_bytes(device: str = "cpu") -> torch.Tensor:
    """The bytes that each token stands for, IntTensor[VOCAB_SIZE], by its published name."""
    import torch

    return torch.tensor(Tokenizer.load().token_bytes, dtype=torch.int32, device=device)


# ---------------------------------------------------------------------------------------------
# Loader

SPLITS = ("train", "val")  # names of published scripts
DATA_ORDER = 1234  # never the seed: with the order varied too, the spread of runs doubles


def make_dataloader(
    tokenizer: Tokenizer,
    B: int,  # noqa: N803 (both names are the published ones)
    T: int,  # noqa: N803
    split: str = "cpu",
) -> Iterator[Batch]:
    """Endless batches (x, y, epoch) of text, the same for every run on the same data.

    x and y are LongTensor[B, T]; y is x, one token on. A row is full and starts with
    BOS; a document longer than a row is cut into pieces, each behind a BOS of its own, and no text
    is dropped. On a GPU a thread works ahead.

    `split` is "train" or "val", as published scripts say, and the batches are on the device of the
    profile; or it is a device, "cpu" or "cuda", and the text is that of the training.
    """
    import numpy as np
    import torch

    prepared, device = load_prepared(), split
    if split in SPLITS:
        settle_process(prepared.profile)
        device = "cuda" if prepared.profile.device == "cuda" else "cpu"
    # A published script keeps its own time. Where weights are scored, there is one clock for all.
    if not Clock.running and (split not in SPLITS or _is_scored_elsewhere()):
        _record("early_draw")
    threads = 1 if device == "cpu" else min(8, os.cpu_count() or 1)
    files = [prepared.val_file] if split == "val" else prepared.train_files
    texts = _encoded_text(tokenizer, files, threads)
    rows = _packed_rows(tokenizer, texts, T, prepared.profile.buffer_tokens)

    def on_host() -> Iterator[Batch]:
        while True:
            chosen = [next(rows) for _ in range(B)]
            batch = torch.from_numpy(np.stack([row for row, _ in chosen]))
            x, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
            if device != "cpu":
                x, y = x.pin_memory(), y.pin_memory()
            yield x, y, chosen[-1][1]

    for x, y, epoch in on_host() if device == "cpu" else _ahead(on_host()):
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True), epoch


def _ahead(batches: Iterator[Batch], depth: int = 8) -> Iterator[Batch]:
    """`batches`, made up to `depth` ahead in a thread, whose errors are raised here."""
    import queue
    import threading

    ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)

    def work() -> None:
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=work, daemon=True, name="loader").start()
    while True:
        batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _packed_rows(
    tokenizer: Tokenizer, encoded: Iterator[tuple[Tokens, int]], seq_len: int, buffer_tokens: int
) -> Iterator[tuple[Tokens, int]]:
    """Rows of seq_len + 1 tokens: a piece drawn by lot, then the longest pieces that still fit.

    The lot keeps the pieces of a document apart, the best fit keeps pieces whole. When none fits
    the shortest is cut, and its rest goes back.
    """
    import random
    from bisect import bisect_right, insort

    import numpy as np

    lot = random.Random(DATA_ORDER)
    bos = np.array([tokenizer.bos], dtype=np.int64)
    pieces: list[tuple[int, int, Tokens]] = []  # length, serial number, tokens with BOS; sorted
    held = serial = epoch = 0

    def put(tokens: Tokens) -> None:
        nonlocal held, serial
        insort(pieces, (len(tokens) + 1, serial, np.concatenate([bos, tokens])))
        held += len(tokens) + 1
        serial += 1

    while True:
        while held < max(buffer_tokens, 2 * seq_len):
            tokens, epoch = next(encoded)
            for start in range(0, len(tokens), seq_len):
                put(tokens[start : start + seq_len])
        row, filled = np.empty(seq_len + 1, dtype=np.int64), 0
        index = lot.randrange(len(pieces))
        while filled <= seq_len:
            length, _, piece = pieces.pop(index)
            held -= length
            space = seq_len + 1 - filled
            if length > space:
                put(piece[space:])
                piece = piece[:space]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            index = max(0, bisect_right(pieces, (space - len(piece), serial)) - 1)
        yield row, epoch


def _encoded_text(
    tokenizer: Tokenizer, files: list[Path], threads: int
) -> Iterator[tuple[Tokens, int]]:
    """Tokens and epoch (from 1) of the texts in `files`, over and over in one order."""
    from concurrent.futures import ThreadPoolExecutor
    from itertools import count, islice

    texts = ((text, epoch) for epoch in count(1) for file in files for text in _read_parquet(file))
    if threads == 1:
        for text, epoch in texts:
            yield tokenizer.encode(text), epoch
    with ThreadPoolExecutor(threads) as pool:  # tiktoken releases the GIL
        while group := list(islice(texts, 32 * threads)):
            encoded = pool.map(tokenizer.encode, [text for text, _ in group])
            yield from zip(encoded, [epoch for _, epoch in group], strict=True)


# ---------------------------------------------------------------------------------------------
# Evaluation: bits per byte of fixed documents. The model sees x and returns logits, no more.

Ask = Callable[[Any], Any]  # token ids, int32 [B, T], to float32 logits [B, T, V] of its own
KEPT_BYTES = 1 << 28  # of logits that are held to be compared with a second answer


@dataclass(frozen=True)
class Evaluation:
    val_bpb: float  # validation bits per UTF-8 byte, lower is better
    tokens: int  # each scored once
    bytes: int  # the denominator, a constant of the data
    documents: int
    seconds: float


@dataclass(frozen=True)
class Windows:
    """BOS + document, for each document, as consecutive rows of at most seq_len predictions.

    tokens[start : start + size] are the inputs of a row, and one token on its targets. Neighbours
    share one token, the last target of one being the first input of the next: every token but BOS
    is a target once.
    """

    tokens: Tokens
    starts: Tokens
    sizes: Tokens
    documents: Tokens  # the number of the document of each row

    def inputs(self, rows: list[int], width: int) -> Tokens:
        """int32 [len(rows), width]: as much of each row as fits, then zeros."""
        import numpy as np

        x = np.zeros((len(rows), width), dtype=np.int32)
        for i, row in enumerate(rows):
            size = min(width, int(self.sizes[row]))
            x[i, :size] = self.tokens[self.starts[row] : self.starts[row] + size]
        return x

    def targets(self, row: int) -> Tokens:
        return self.tokens[self.starts[row] + 1 : self.starts[row] + self.sizes[row] + 1]


def windows_of(tokens: Tokens, bos: int, length: int) -> Windows:
    """The documents in `tokens`, BOS before each, as rows of at most `length` predictions."""
    import numpy as np

    begins = np.flatnonzero(tokens == bos)
    predictions = np.diff(np.append(begins, len(tokens))) - 1
    counts = -(-predictions // length)
    documents = np.repeat(np.arange(len(begins)), counts)
    offsets = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    sizes = np.minimum(length, predictions[documents] - offsets)
    return Windows(tokens, begins[documents] + offsets, sizes, documents)


def validation_windows(prepared: Prepared) -> Windows:
    profile, facts = prepared.profile, prepared.manifest["validation"]
    windows = windows_of(validation_tokens(prepared), profile.vocab_size - 1, profile.seq_len)
    if (found := int(windows.sizes.sum())) != facts["tokens"]:
        raise _damage(prepared.path, "val.npy", f"{found} tokens, {facts['tokens']} expected")
    return windows


class Exam:
    """All rows in batches, in an order that `seed` decides, and the rows that are asked again.

    Rows of like length are together, so little is padding, and few widths occur: a model may
    compile for each. No batch holds two rows of one document: one could tell of the other.
    """

    def __init__(self, windows: Windows, profile: Profile, rows: int, seed: str) -> None:
        import random

        self.windows = windows
        quarter = max(1, profile.seq_len // 4)
        by_width: dict[int, list[int]] = {}
        for row, size in enumerate(windows.sizes.tolist()):
            width = min(profile.seq_len, -(-size // quarter) * quarter)
            by_width.setdefault(width, []).append(row)
        # Two lots: who sees the order of the rows does not see which of them are drawn.
        lot, draw = random.Random(f"order {seed}"), random.Random(f"probes {seed}")
        self.batches: list[tuple[int, list[int]]] = []
        again: list[tuple[int, int, list[int]]] = []  # width, rows of a batch, those to ask again
        for width, members in by_width.items():
            batches = self._deal(members, rows, lot)
            self.batches += [(width, batch) for batch in batches]
            # Two for each batch of the profile's size; rows of a long document make smaller ones.
            drawn = draw.sample(members, min(len(members), max(2, 2 * len(members) // rows)))
            size = max(map(len, batches))
            again += [(width, size, chosen) for chosen in self._deal(drawn, size, draw)]
        lot.shuffle(self.batches)
        seen = {row for _, _, chosen in again for row in chosen}
        self.probes = [self._probe(*one, seen, draw) for one in again]
        held = sum(len(probe.rows) for probe in self.probes) * profile.vocab_size * 4
        for probe in self.probes:
            probe.choose_places(windows, max(1, KEPT_BYTES // held), draw)

    def _deal(self, rows: list[int], most: int, lot: random.Random) -> list[list[int]]:
        """`rows` in batches of like size, `most` at most: those of a document go round."""
        by_document: dict[int, list[int]] = {}
        for row in lot.sample(rows, len(rows)):
            by_document.setdefault(int(self.windows.documents[row]), []).append(row)
        groups = list(by_document.values())
        in_turn = [row for group in groups for row in group]
        count = max(-(-len(rows) // most), *map(len, groups))
        batches = [in_turn[start::count] for start in range(count)]
        return [lot.sample(batch, len(batch)) for batch in batches]

    @property
    def largest(self) -> tuple[int, int]:
        """As many rows, and as many tokens in a row, as any question has."""
        return max(len(rows) for _, rows in self.batches), max(width for width, _ in self.batches)

    def _probe(
        self, width: int, size: int, rows: list[int], drawn: set[int], draw: random.Random
    ) -> Probe:
        """`rows` and strangers up to `size`, and the same with suffixes of other real text.

        Strangers and suffixes are of none of the `drawn` rows, as long as there are others: a host
        is to learn nothing of those before it is asked for them.
        """
        windows, documents = self.windows, self.windows.documents.tolist()
        others = draw.sample(range(len(documents)), len(documents))
        others.sort(key=lambda row: row in drawn)  # keeps the order of the rest
        beside = {documents[row]: row for row in [*reversed(others), *rows]}  # one of a document
        strangers = [row for row in beside.values() if row not in rows]
        shown = rows + draw.sample(strangers, size - len(rows))
        whole = windows.inputs(shown, width)
        swapped, cuts = whole.copy(), []
        long = [row for row in others if row not in drawn and windows.sizes[row] >= width]
        for i, row in enumerate(shown):
            foreign = [other for other in long or others if documents[other] != documents[row]]
            suffix = windows.inputs([draw.choice(foreign or others)], width)[0]
            cuts.append(draw.randint(1, max(1, int(windows.sizes[row]) - 1)))
            swapped[i, cuts[i] :] = suffix[cuts[i] :]
        shortest = int(windows.sizes[rows].min())
        return Probe(rows, whole, swapped, draw.randint(1, max(1, shortest - 1)), cuts)

    def answer(self, ask: Ask) -> float:
        """The nats of all targets; the logits of rows that are asked again are kept.

        Every row is summed by itself, and the rows in their own order, so no other changes it.
        """
        windows, nats = self.windows, [0.0] * len(self.windows.sizes)
        kept = {row: (probe, i) for probe in self.probes for i, row in enumerate(probe.rows)}
        for width, batch in self.batches:
            logits = ask(windows.inputs(batch, width))
            for i, row in enumerate(batch):
                said = logits[i, : int(windows.sizes[row])]
                nats[row] = float(token_nats(said, windows.targets(row)).sum())
                if not math.isfinite(nats[row]):
                    problem = f"the logits are not finite: the loss of a row is {nats[row]}"
                    raise EvaluationError("not_finite", problem)
                if row in kept:
                    probe, place = kept[row]
                    probe.said[place] = _array(said[probe.places[place]])
        return math.fsum(nats)

    def ask_again(self, ask: Ask, rounding_limit: float | None = None) -> float:
        """How far logits move that nothing but rounding should move; `ask` saw none of the rows.

        First come prefixes alone; then the same ones beside fewer rows, whose difference tells how
        much is rounding; then the rows with suffixes of other real text (random ones could be
        recognised); at last the rows among strangers. Raises EvaluationError("peeking") for more
        than rounding explains.
        """
        rounding = ahead = 0.0
        for probe in self.probes:
            logits = ask(probe.whole[:, : probe.cut])
            fewer = ask(probe.whole[::2, : probe.cut])
            rounding = max(rounding, _difference(fewer, logits[::2]))
            ahead = max(ahead, probe.difference(logits, [probe.cut] * len(probe.rows)))
        limit = rounding_limit or min(0.05, max(0.001, 8 * rounding))
        if rounding > limit:
            raise EvaluationError(
                "peeking",
                f"the logits of a row move by {rounding:.3g} with the other rows of its batch: the "
                "model looks at them, or draws random numbers in eval mode",
            )
        for probe in self.probes:
            ahead = max(ahead, probe.difference(ask(probe.swapped), probe.cuts))
        if ahead > limit:
            raise EvaluationError(
                "peeking",
                f"logits move by {ahead:.3g} when only later tokens change, rounding explains "
                f"{limit:.1g}: the model looks ahead",
            )
        beside = max(probe.difference(ask(probe.whole)) for probe in self.probes)
        if beside > limit:
            raise EvaluationError(
                "peeking",
                f"logits move by {beside:.3g} beside other rows in a fresh process, rounding "
                f"explains {limit:.1g}: the model looks at other rows, or remembers them",
            )
        return max(ahead, beside)


@dataclass
class Probe:
    """A batch that is asked again: `rows` first, then strangers of other documents."""

    rows: list[int]
    whole: Tokens  # int32 [B, T], as they were in the evaluation
    swapped: Tokens  # with other text from cuts[i] on
    cut: int  # the length of all prefixes
    cuts: list[int]  # strangers have one too, and none of what follows
    places: list[list[int]] = field(default_factory=list)  # of each row: what is compared
    said: dict[int, Any] = field(default_factory=dict)  # of each row: the logits there

    def choose_places(self, windows: Windows, most: int, draw: random.Random) -> None:
        """All positions of the rows where memory allows, else `most`; those at the cuts always."""
        for row, cut in zip(self.rows, self.cuts, strict=False):
            size = int(windows.sizes[row])
            drawn = draw.sample(range(size), min(size, most))
            self.places.append(sorted({*drawn, cut - 1, self.cut - 1}))

    def difference(self, logits: Any, ends: list[int] | None = None) -> float:
        """Of `logits` to those of the evaluation, at the places of each row before its end."""
        most = 0.0
        for i, places in enumerate(self.places):
            before = [place for place in places if ends is None or place < ends[i]]
            most = max(most, _difference(logits[i, before], self.said[i][: len(before)]))
        return most


def _array(logits: Any) -> Any:
    """A numpy array of its own of logits that may be a tensor on a GPU."""
    return logits.copy() if hasattr(logits, "copy") else logits.cpu().numpy()


def _difference(a: Any, b: Any) -> float:
    most = float(abs(_array(a) - _array(b)).max(initial=0.0))
    if not math.isfinite(most):
        raise EvaluationError("not_finite", "the logits are not finite")
    return most


def token_nats(logits: Any, targets: Tokens) -> Any:
    """-ln p of each target, float64 [N], under float32 logits [N, V] on the CPU or a GPU.

    The softmax is taken here, in float32: a model cannot report a loss of its own.
    """
    import numpy as np

    if not isinstance(logits, np.ndarray):
        import torch

        right = torch.from_numpy(targets.astype(np.int64)).to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits, right, reduction="none")
        return losses.double().cpu().numpy()
    nats = np.empty(len(targets))
    for start in range(0, len(targets), 64):  # so much stays in a cache
        part, at = logits[start : start + 64], targets[start : start + 64]
        with np.errstate(all="ignore"):  # what is not finite is said by the caller
            most = part.max(axis=1, keepdims=True)
            total = np.exp(part - most).sum(axis=1).astype(np.float64)
            right = (most[:, 0] - part[np.arange(len(at)), at]).astype(np.float64)
            nats[start : start + 64] = np.log(total) + right
    return nats


def evaluate(
    model: torch.nn.Module, batch_size: int | None = None, prepared: Prepared | None = None
) -> Evaluation:
    """Scores all validation text in this process, on the device of the model.

    bits per byte = sum of -log2 p(token) / UTF-8 bytes of the documents, one document a row.
    """
    began = time.perf_counter()
    prepared = prepared or load_prepared()
    profile = prepared.profile
    rows = batch_size or profile.eval_batch_size
    exam = Exam(validation_windows(prepared), profile, rows, "by hand")
    return _evaluation(prepared, exam.answer(answers_of(model, profile.vocab_size)), began)


def answers_of(model: torch.nn.Module, vocab_size: int) -> Ask:
    """A model of this process, as a function from token ids to logits."""
    import torch

    def ask(x: Tokens) -> Any:
        logits = _logits(model, torch.from_numpy(x).long(), vocab_size)
        return logits if logits.is_cuda else logits.numpy()

    return ask


def _evaluation(prepared: Prepared, nats: float, began: float) -> Evaluation:
    facts = prepared.manifest["validation"]
    val_bpb = nats / math.log(2) / facts["bytes"]
    seconds = time.perf_counter() - began
    return Evaluation(val_bpb, facts["tokens"], facts["bytes"], facts["documents"], seconds)


def evaluate_bpb(
    model: torch.nn.Module,
    tokenizer: Tokenizer | int | None = None,
    batch_size: int | None = None,
) -> float:
    """Validation bits per byte, lower is better: `evaluate_bpb(model)`, see `evaluate`.

    `evaluate_bpb(model, tokenizer, batch_size)` is the published call, with its meaning: the model
    gives the losses of full rows itself, as model(x, y, reduction="none"), and the nats of all
    target tokens that stand for bytes are divided by those bytes and ln 2. Such a number is as good
    as the script; the official score is computed otherwise, by `evaluate` from the saved weights.

    Where an orchestrator scores the saved weights (`$AUTOHYPOTHESIS_SAVE_WEIGHTS` is 1) it is nan:
    a training never reads the text that it is judged by.
    """
    if _is_scored_elsewhere():
        return math.nan
    if isinstance(tokenizer, Tokenizer):
        return _published_bpb(model, tokenizer, batch_size)
    return evaluate(model, batch_size if tokenizer is None else tokenizer).val_bpb


def _is_scored_elsewhere() -> bool:
    return os.environ.get("AUTOHYPOTHESIS_SAVE_WEIGHTS") == "1"


def _published_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int | None) -> float:
    """Bits per byte by the losses that the model returns, over about all validation text."""
    import torch

    prepared = load_prepared()
    rows, seq_len = batch_size or prepared.profile.eval_batch_size, prepared.profile.seq_len
    sizes = torch.tensor(tokenizer.token_bytes)
    nats, count = 0.0, 0
    batches = make_dataloader(tokenizer, rows, seq_len, "val")
    for _ in range(max(1, prepared.manifest["validation"]["tokens"] // (rows * seq_len))):
        x, y, _ = next(batches)
        with torch.no_grad():
            losses = model(x, y, reduction="none").reshape(-1).double().cpu()
        token_bytes = sizes[y.reshape(-1).cpu()]
        nats += float((losses * (token_bytes > 0)).sum())
        count += int(token_bytes.sum())
    return nats / (math.log(2) * count)


def _logits(model: torch.nn.Module, x: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """float32 logits [B, T, V] of x, LongTensor[B, T], in evaluation mode."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x.to(next(model.parameters()).device))
    finally:
        model.train(was_training)
    return _checked(logits, (*x.shape, vocab_size)).detach().float()


def _checked(logits: Any, expected: tuple[int, ...]) -> torch.Tensor:
    import torch

    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != list(expected):
        raise EvaluationError("shape", f"forward gave {shape}, not [B, T, V] = {list(expected)}")
    return logits  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------
# A candidate train.py: preflight and official score


def _import_candidate(path: Path) -> ModuleType:
    """The candidate as a module, with this prepare.py and no other behind `import prepare`."""
    import importlib.util

    sys.modules["prepare"] = sys.modules[__name__]
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("train", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules["train"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _constants(module: ModuleType, path: Path) -> dict[str, Any]:
    """The UPPERCASE assignments at the top level of the file, evaluated, where JSON has them."""
    import ast

    constants = {}
    for node in ast.parse(path.read_bytes()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for name in (target.id for target in targets if isinstance(target, ast.Name)):
            value = getattr(module, name, None)
            if name.isupper():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name} = {value} is not finite")
                with contextlib.suppress(TypeError, ValueError):
                    constants[name] = json.loads(json.dumps(value, allow_nan=False))
    return constants


def shape_problem(constants: dict[str, Any], seq_len: int) -> str | None:
    """The first rule that the constants break, with name and value; None when there is none."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def size(value: Any) -> bool:
        return type(value) is int and value >= 1

    def betas(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(0 <= b < 1 for b in value)

    rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("DEPTH ASPECT_RATIO HEAD_DIM TOTAL_BATCH_SIZE DEVICE_BATCH_SIZE", size,
         "a whole number from 1 on"),
        ("HEAD_DIM", lambda v: v % 2 == 0, "even, and rotary embedding turns pairs"),
        ("EMBEDDING_LR UNEMBEDDING_LR MATRIX_LR SCALAR_LR WEIGHT_DECAY",
         lambda v: number(v) and v >= 0, "a number from 0 on"),
        ("WARMUP_RATIO WARMDOWN_RATIO FINAL_LR_FRAC",
         lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1"),
        ("WINDOW_PATTERN", lambda v: bool(re.fullmatch("[SL]+", str(v))), "a word of S and L"),
        ("ADAM_BETAS", betas, "a pair of numbers from 0 to below 1"),
    )  # fmt: skip
    for names, holds, words in rules:
        for name in names.split():
            if name in constants and not holds(constants[name]):
                return f"{name} = {constants[name]!r} is not {words}"
    up, down = constants.get("WARMUP_RATIO", 0), constants.get("WARMDOWN_RATIO", 0)
    if up + down > 1:
        return f"WARMUP_RATIO = {up} and WARMDOWN_RATIO = {down} are more than 1 together"
    total = constants.get("TOTAL_BATCH_SIZE", 0)
    rows = min(constants.get("DEVICE_BATCH_SIZE", 1), max(1, total // seq_len))
    if total % (rows * seq_len):
        return (
            f"TOTAL_BATCH_SIZE = {total} is not a multiple of DEVICE_BATCH_SIZE x MAX_SEQ_LEN = "
            f"{rows} x {seq_len} = {rows * seq_len}"
        )
    return None


def preflight(path: Path) -> dict[str, Any]:
    """Tries a candidate on the CPU: import, shape rules, one small step. What fails is told."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    constants: dict[str, Any] | None = None
    try:
        profile = load_profile()
        if b"build_model" not in path.read_bytes():  # it may train when it is imported
            raise EvaluationError(
                "build_model",
                f"{path.name} has no build_model(config), so its weights cannot be scored; commit"
                " it and begin a search with it (--tag NAME): its score is then what it prints",
            )
        module = _import_candidate(path)
        constants = _constants(module, path)
        if problem := shape_problem(constants, profile.seq_len):
            return {"ok": False, "problem": problem, "constants": constants}
        import torch
        from torch.nn.functional import cross_entropy

        model = module.build_model({name.lower(): value for name, value in constants.items()})
        row = torch.arange(min(16, profile.seq_len) + 1).remainder(profile.vocab_size)[None]
        logits = _checked(model(row[:, :-1]), (1, row.shape[1] - 1, profile.vocab_size))
        loss = cross_entropy(logits.float()[0], row[0, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        nats = float(loss.detach())
        if not math.isfinite(nats):
            raise EvaluationError("not_finite", f"the loss of a first step is {nats}")
        parameters = sum(p.numel() for p in model.parameters())
        return {"ok": True, "constants": constants, "num_params": parameters}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may raise anything, SystemExit included
        return {"ok": False, "problem": _blame(error, path), "constants": constants}


def _blame(error: BaseException, path: Path) -> str:
    """One line: what was raised, and the last line of the candidate on the way there."""
    import traceback

    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{text} ({path.name} line {lines[-1]})" if lines else text


@contextlib.contextmanager
def _blaming(kind: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (EvaluationError, PrepareError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a candidate may raise anything, SystemExit included
        raise EvaluationError(kind, _blame(error, path)) from error


# ---------------------------------------------------------------------------------------------
# The host: a process with the candidate's code and weights, that gets token ids and answers logits.
#
# `python prepare.py --candidate-host TRAIN_PY` imports torch and waits on standard input, a socket,
# for the scorer's word. It then forks: one child answers the evaluation, and after it and all that
# it started have gone, another one the questions about it. The engine starts it in a sandbox.
# Requests and logits lie in memory of the scorer's. Nothing that a host says is trusted.

REQUEST = struct.Struct("<3I")  # number, rows, width; the ids are in the shared memory
ANSWER = struct.Struct("<2I400s")  # number, place of the problem in PROBLEMS, what it is
PROBLEMS = ("", "build_model", "weights", "shape", "not_finite")
LOGITS_AT = 64  # bytes that the logits are aligned to
LEAVES_S = 2.0  # what a host may take to end by itself
FILE_LIMIT = 1 << 34  # bytes of a file that is scored
_HAS_MEMORY_FILES = hasattr(os, "memfd_create")  # Linux; elsewhere they lie on the disk


def serve(train_py: Path) -> None:
    """Forks a host for every word of the scorer, one at a time, until there are no more words."""
    import signal
    import socket

    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    profile = load_profile()
    _process_control(36, 1)  # PR_SET_CHILD_SUBREAPER: what a host leaves behind comes to us
    _process_control(4, 0)  # PR_SET_DUMPABLE: no host reads our memory
    import torch  # noqa: F401

    sys.pycache_prefix = os.devnull  # from now on: beside the candidate a training may have left it
    sys.dont_write_bytecode = True
    parent = os.getpid()
    while True:
        control.sendall(b"+")
        word, files, _, _ = socket.recv_fds(control, 4096, 4)
        if not word:
            os._exit(0)  # torch would take its time
        host = os.fork()
        if host == 0:
            control.close()
            _process_control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            _process_control(4, 1)  # of its own it may read all: CUDA names its threads in /proc
            try:
                if os.getppid() == parent:
                    _answer_questions(train_py, profile, json.loads(word), *files)
                os._exit(0)
            except BaseException as error:  # it must not go on as the process that forks
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
        for file in files:
            os.close(file)
        control.recv(1)
        control.sendall(_end(host).to_bytes(4, "little"))


def _end(host: int) -> int:
    """The exit status of a host, when it and all that it started have ended."""
    import signal

    until = time.monotonic() + LEAVES_S
    status = None
    while status is None and time.monotonic() < until:
        pid, code = os.waitpid(host, os.WNOHANG)
        status = code if pid else None
        time.sleep(0.002)
    while True:
        for pid in _children() or [host] * (status is None):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status or 0
        status = code if pid == host else status


def _children() -> list[int]:
    """The processes of which this one is the parent, where there is /proc."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path("/proc", name, "stat").read_text(errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


def _answer_questions(train_py: Path, profile: Profile, word: dict[str, Any], *files: int) -> None:
    """The life of one host: builds the model, says so, and answers until the socket is closed."""
    import mmap
    import socket

    import torch

    connection, memory_file, config_file, weights_file = files
    scorer = socket.socket(fileno=connection)
    memory = mmap.mmap(memory_file, word["bytes"])

    def say(number: int, problem: str = "", text: str = "") -> None:
        words = text.encode(errors="replace")[:400]
        scorer.sendall(ANSWER.pack(number, PROBLEMS.index(problem), words))

    number = 0
    try:
        _shut_in(word["home"])
        with _blaming("build_model", train_py):
            config = json.loads(os.pread(config_file, os.fstat(config_file).st_size, 0))
            # A constant may bear any name: the model is built of the object that has nothing else.
            named = config.get("hyperparameters")
            settings = named if isinstance(named, dict) else config
            model = _import_candidate(train_py).build_model(settings)
        with _blaming("weights", train_py), open(weights_file, "rb") as file:
            file.seek(0)
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        with _blaming("shape", train_py):
            if word["device"] == "cuda":
                _pin(memory)
            model.to(word["device"])
            say(0)
            while request := _receive_all(scorer, REQUEST.size):
                number, rows, width = REQUEST.unpack(request)
                x = torch.frombuffer(memory, dtype=torch.int32, count=rows * width)
                logits = _logits(model, x.view(rows, width).long(), profile.vocab_size)
                at, count = _logits_at(rows, width), logits.numel()
                answer = torch.frombuffer(memory, dtype=torch.float32, count=count, offset=at)
                answer.view(logits.shape).copy_(logits)
                say(number)
    except EvaluationError as error:
        say(number, error.kind, str(error))


def _logits_at(rows: int, width: int) -> int:
    """Where in the shared memory the answer to so many ids begins, in bytes."""
    return -(-4 * rows * width // LOGITS_AT) * LOGITS_AT


def _pin(memory: mmap.mmap) -> Any:
    """Lets a GPU copy from and to shared memory as fast as the bus is; returns it as a tensor."""
    import torch

    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.numel(), 0)  # type: ignore[no-untyped-call]
    return tensor


def _receive_all(connection: socket.socket, size: int) -> bytes:
    """`size` bytes; nothing where the other side has closed."""
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data if len(data) == size else b""


def _process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _shut_in(home: str) -> None:
    """Leaves this process no way to any other one: it writes nothing outside `home`, and has no
    hold on memory, signals and sockets of others. What it may read is not narrowed here.

    By Landlock, in a layer inside of the sandbox; where the kernel has none it is not done.
    """
    import tempfile

    for compiler in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH",
                     "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):  # fmt: skip
        os.environ.pop(compiler, None)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = home
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict = 444, 445, 446  # system calls, on every architecture
    abi = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return
    # Writing to files, making and removing them; moving (2) and truncating (3) came later.
    changes = 0x1FF2 | (0x2000 if abi >= 2 else 0) | (0x4000 if abi >= 3 else 0)
    closed = struct.pack("<3Q", changes, 3, 3)  # and TCP; and signals and abstract sockets
    size = ctypes.c_size_t(8 if abi < 4 else 16 if abi < 6 else 24)
    rules = libc.syscall(create, closed, size, 0)
    cards = ["ctl", "-uvm", "-uvm-tools", "-modeset", "-caps", *map(str, range(16))]
    names = ["null", "zero", "full", "random", "urandom", *(f"nvidia{card}" for card in cards)]
    for path in (home, "/proc/self", *(f"/dev/{name}" for name in names)):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_PATH)
            access = changes if path == home else changes & 0x4002
            libc.syscall(add, rules, 1, struct.pack("<Qi", access, file), 0)
            os.close(file)
    _process_control(38, 1)  # PR_SET_NO_NEW_PRIVS
    if libc.syscall(restrict, rules, 0) != 0:
        raise PrepareError(f"the host cannot be confined: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


# ---------------------------------------------------------------------------------------------
# The scorer: text, targets and arithmetic, in a process that never imports the candidate


def score(
    run_dir: Path, train_py: Path, host: list[str] | None = None, order: str = ""
) -> dict[str, Any]:
    """The official evaluation of the weights of a run; EvaluationError says what is wrong.

    `host` is the command that starts `--candidate-host`, in a sandbox say. `order` repeats a score
    to the last digit: rows and questions are drawn by it, and it is secret until the end.
    """
    import secrets

    began = time.perf_counter()
    profile = load_prepared().profile
    settle_process(profile)
    _process_control(4, 0)  # PR_SET_DUMPABLE: no host reads what is held here
    isolated = ["-I"] if sys.flags.isolated else []
    own = [sys.executable, *isolated, __file__, "--candidate-host", str(train_py)]
    device = "cpu"
    if profile.device == "cuda":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    order = order or secrets.token_hex(16)
    with Hosts(host or own, profile, device, run_dir, train_py) as hosts:
        prepared = load_prepared(verify=True)  # while the host imports torch
        exam = Exam(validation_windows(prepared), profile, profile.eval_batch_size, order)
        with hosts.asked(exam) as ask:
            result = _evaluation(prepared, exam.answer(ask), began)
        with hosts.asked(exam) as ask:
            moved = exam.ask_again(ask, 0.25 if device == "cuda" else None)
    facts = {"data_hash": prepared.manifest["data_hash"], "peeking": moved, "order": order}
    facts["validation_hidden"] = profile.source != "stdlib"  # which every Python can read
    return asdict(result) | facts


class Hosts:
    """A process of `serve`, and the hosts that it forks. All end with the `with` block."""

    def __init__(
        self, command: list[str], profile: Profile, device: str, run_dir: Path, train_py: Path
    ) -> None:
        import socket
        import subprocess

        self.profile, self.device = profile, device
        self.limit_s = profile.start_allowance_s + profile.evaluation_allowance_s
        self.until = math.inf  # when a candidate has to have answered everything
        self.said = b""  # the last that was printed
        with _blaming("build_model", train_py):
            self.config = _sealed_copy(run_dir, "config.json")
        with _blaming("weights", train_py):
            self.weights = _sealed_copy(run_dir, "weights.pt")
        self.control, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise PrepareError(f"the host of the candidate does not start: {error}") from None

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        import subprocess

        self.control.close()
        try:
            self.process.wait(2 * LEAVES_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def asked(self, exam: Exam) -> Iterator[Ask]:
        """A fresh host, as a function from token ids to logits. Nothing of it is left after."""
        import shutil
        import socket
        import tempfile
        from itertools import count

        self._await_ready()
        memory = SharedMemory(exam, self.profile.vocab_size, self.device)
        home = tempfile.mkdtemp(prefix="host-")
        connection, theirs = socket.socketpair()
        word = {"bytes": memory.size, "device": self.device, "home": home}
        files = [theirs.fileno(), memory.file, _reopened(self.config), _reopened(self.weights)]
        socket.send_fds(self.control, [json.dumps(word).encode()], files)
        for file in (theirs.detach(), *files[2:]):
            os.close(file)
        self.status: int | None = None  # the exit code of the host, when it has ended
        numbers = count(1)

        def ask(x: Tokens) -> Any:
            number = next(numbers)
            memory.put(x)
            if _is_readable(connection):
                raise EvaluationError("host", "the candidate answered without being asked")
            with contextlib.suppress(OSError):  # it has ended, which is seen at once
                connection.sendall(REQUEST.pack(number, *x.shape))
            self._hear(connection, number)
            return memory.copy(*x.shape)

        try:
            self._hear(connection, 0)
            yield ask
        finally:
            connection.close()
            self._end()
            os.close(memory.file)
            with contextlib.suppress(RecursionError):
                shutil.rmtree(home, ignore_errors=True)
        if os.path.lexists(home):
            raise EvaluationError("host", f"the candidate left what cannot be removed: {home}")

    def _await_ready(self) -> None:
        limit = time.monotonic() + self.limit_s
        if self._receive(self.control, 1, limit) != b"+":
            if self.until < math.inf:  # it was ready before a candidate had a hand in it
                raise self._ended()
            raise PrepareError(f"the host of the candidate does not start{self._last_words()}")
        self.until = min(self.until, limit)

    def _hear(self, connection: socket.socket, number: int) -> None:
        """Waits for the answer to a question; EvaluationError for every other end."""
        answer = self._receive(connection, ANSWER.size, self.until)
        if len(answer) < ANSWER.size:
            raise self._ended()
        to, problem, words = ANSWER.unpack(answer)
        if problem:
            kind = PROBLEMS[problem] if problem < len(PROBLEMS) else "host"
            raise EvaluationError(kind, _plain(words.rstrip(b"\0")))
        if to != number:
            raise EvaluationError("host", f"the candidate answered question {to}, not {number}")

    def _receive(self, connection: socket.socket, size: int, until: float) -> bytes:
        """`size` bytes, or fewer where the other side closes. What a host prints is read along."""
        data = b""
        while len(data) < size:
            left = until - time.monotonic()
            if left <= 0 or not self._listen(connection, left):
                said = f"the candidate takes longer than {self.limit_s:g} s to be built and asked"
                raise EvaluationError("timeout", said)
            if _is_readable(connection):
                if not (part := connection.recv(size - len(data))):
                    return data
                data += part
        return data

    def _listen(self, connection: socket.socket | None, seconds: float) -> bool:
        """Waits until somebody says something, and takes in what a host prints."""
        import select

        errors = self.process.stderr
        assert errors is not None
        poll = select.poll()
        for stream in (connection, None if errors.closed else errors):
            if stream is not None:
                poll.register(stream, select.POLLIN)
        ready = [file for file, _ in poll.poll(1000 * seconds)]
        if not errors.closed and errors.fileno() in ready:
            text = os.read(errors.fileno(), 1 << 16)
            self.said = (self.said + text)[-4096:]
            if not text:
                errors.close()
        return bool(ready)

    def _end(self) -> None:
        """Ends the host and all that it started, and takes what they left to say."""
        if self.status is not None:
            return
        with contextlib.suppress(OSError, EvaluationError):
            self.control.sendall(b".")
            code = self._receive(self.control, 4, time.monotonic() + 10 * LEAVES_S)
            self.status = os.waitstatus_to_exitcode(int.from_bytes(code, "little"))
        while self._listen(None, 0):  # the next host could read it
            pass

    def _ended(self) -> EvaluationError:
        self._end()
        how = "ended"
        if self.status:
            how = f"exited {self.status}" if self.status > 0 else f"ended by signal {-self.status}"
        said = f"the candidate's process {how} before it answered{self._last_words()}"
        return EvaluationError("host", said)

    def _last_words(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return f": {_plain(lines[-1])}" if lines else ""


class SharedMemory:
    """Memory of the scorer's that a host maps: token ids, and the logits that answer them.

    It is sealed, so that no host makes it smaller under the scorer's hands. Logits are copied
    before they are read: a host may write at any time. A GPU copies from and to it at the speed of
    the bus; memory of its own could not be shared between the process spaces of two sandboxes.
    """

    def __init__(self, exam: Exam, vocab_size: int, device: str) -> None:
        import mmap

        rows, width = exam.largest
        self.vocab_size, self.device = vocab_size, device
        self.size = _logits_at(rows, width) + 4 * rows * width * vocab_size
        self.file = _memory_file()
        os.truncate(self.file, self.size)
        _seal(self.file)
        self.map = mmap.mmap(self.file, self.size)
        if device == "cuda":
            _pin(self.map)

    def put(self, x: Tokens) -> None:
        """Token ids; and no number where the answer will be, so that what is not written shows."""
        import numpy as np

        np.frombuffer(self.map, np.int32, x.size)[:] = x.ravel()
        self._logits(*x.shape).fill(np.nan)

    def copy(self, rows: int, width: int) -> Any:
        """The answer to so many ids, where no host can change it: float32 [rows, width, V]."""
        logits = self._logits(rows, width)
        if self.device == "cpu":
            return logits.copy()
        import torch

        return torch.from_numpy(logits).to(self.device)

    def _logits(self, rows: int, width: int) -> Any:
        import numpy as np

        count, at = rows * width * self.vocab_size, _logits_at(rows, width)
        return np.frombuffer(self.map, np.float32, count, at).reshape(rows, width, -1)


def _sealed_copy(folder: Path, name: str) -> int:
    """A file of a run as it is now, in memory that cannot be changed any more."""
    import stat

    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise OSError(f"{name} leads to {path}")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_LIMIT:
            raise OSError(f"{name} is no file of up to {FILE_LIMIT >> 30} GiB")
        copy = _memory_file()
        while block := file.read(1 << 20):
            os.write(copy, block)
    _seal(copy, for_good=True)
    return copy


def _reopened(file: int) -> int:
    """The same memory by a description of its own: the place in it is nobody else's."""
    return os.open(f"/proc/self/fd/{file}", os.O_RDONLY) if _HAS_MEMORY_FILES else os.dup(file)


def _memory_file() -> int:
    """A file without a name; in memory, where the system has such files."""
    import tempfile

    if _HAS_MEMORY_FILES:
        return os.memfd_create("score", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seal(file: int, *, for_good: bool = False) -> None:
    """Fixes the size of a memory file, `for_good` its content too."""
    import fcntl

    if _HAS_MEMORY_FILES:
        write = fcntl.F_SEAL_WRITE if for_good else 0
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | write
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)


def _is_readable(connection: socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _plain(said: bytes) -> str:
    """One line of what a candidate says, without control characters."""
    text = "".join(c if c.isprintable() else " " for c in said.decode(errors="replace"))
    return " ".join(text.split())[:300]


# ---------------------------------------------------------------------------------------------
# Command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Prepares data and tokenizer for train.py, and evaluates what it made."
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="default: ~/.cache/autoresearch")
    make = parser.add_argument_group("prepare, the default")
    make.add_argument("--profile", choices=["auto", *PROFILES], help="default: auto")
    known = ", ".join(["stdlib", *HUB_SOURCES])
    make.add_argument("--source", help=f"{known}, hf:REPO or path:GLOB; default: the profile's")
    make.add_argument("--vocab-size", metavar="N", help="tokens with BOS, or the word: bytes")
    make.add_argument("--seq-len", type=int, metavar="N", help="tokens a row")
    make.add_argument("--budget", type=float, metavar="SECONDS", help="of training")
    make.add_argument("--num-shards", type=int, metavar="N", help="to download; -1 is all")
    make.add_argument("--download-workers", type=int, metavar="N", help="default: 8")
    make.add_argument("--no-download", action="store_true", help="only from text that is here")
    use = parser.add_argument_group("use what is prepared")
    what = use.add_mutually_exclusive_group()
    what.add_argument("--locate", action="store_true", help="describe the active data as JSON")
    what.add_argument("--choose", action="store_true", help="the profile of auto, and why, as JSON")
    what.add_argument("--preflight", metavar="TRAIN_PY", help="try a candidate on the CPU")
    what.add_argument("--score", metavar="RUN_DIR", help="evaluate the weights of a run")
    what.add_argument("--candidate-host", metavar="TRAIN_PY", help="answer the one who scores it")
    what.add_argument("--pack", metavar="FILE", help="write data and tokenizer to a tar file")
    what.add_argument("--unpack", metavar="FILE", help="read such a file and make it active")
    use.add_argument("--train", metavar="TRAIN_PY", help="with --score: the file with build_model")
    use.add_argument("--order", metavar="SEED", help="with --score: repeat one of this order")
    use.add_argument("--host", metavar="COMMAND", help="with --score, last: all its words")
    use.add_argument("--json", action="store_true", help="with --locate: on a single line")
    return parser


def _chosen_profile(options: argparse.Namespace) -> Profile:
    name = options.profile or "auto"
    base = PROFILES[choose_profile()[0] if name == "auto" else name]
    vocab = options.vocab_size
    if vocab not in (None, "bytes") and not vocab.isdecimal():
        raise PrepareError(f"--vocab-size {vocab} is neither a number nor the word: bytes")
    for option in ("seq_len", "budget", "num_shards", "download_workers"):
        value = getattr(options, option)
        if value is not None and not value > 0 and (option, value) != ("num_shards", -1):
            raise PrepareError(f"--{option.replace('_', '-')} {value} is not above 0")
    source = options.source or base.source
    if source == "stdlib" or source.startswith("path:"):
        for option in ("num_shards", "download_workers"):
            if getattr(options, option) is not None:
                raise PrepareError(f"--{option.replace('_', '-')}: {source} is not downloaded")
    return derive_profile(
        base,
        source=options.source,
        vocab_size=257 if vocab == "bytes" else int(vocab) if vocab else None,
        seq_len=options.seq_len,
        budget_seconds=options.budget,
        num_shards=options.num_shards,
    )


def _say(verb: str, prepared: Prepared) -> None:
    facts, profile = prepared.manifest["validation"], prepared.profile
    print(
        f"{verb} {prepared.path}\nprofile {profile.name}: {profile.vocab_size} tokens, rows of "
        f"{profile.seq_len}, {profile.budget_seconds:g} s on the {profile.clock} clock; "
        f"validation {facts['documents']} documents, {facts['bytes']:,} bytes"
    )


def _run(options: argparse.Namespace) -> None:
    if options.locate:
        print(json.dumps(load_prepared().locate(), indent=None if options.json else 2))
    elif options.choose:
        name, reason = choose_profile()
        chosen = {"profile": name, "device": PROFILES[name].device, "reason": reason}
        print(json.dumps(chosen))
    elif options.preflight:
        print(json.dumps(preflight(Path(options.preflight).absolute())), flush=True)
    elif options.score:
        run_dir, train_py = Path(options.score).absolute(), Path(options.train).absolute()
        result = score(run_dir, train_py, options.host, options.order or "")
        print(json.dumps(result), flush=True)
    elif options.candidate_host:
        serve(Path(options.candidate_host).absolute())
    elif options.pack:
        _say(f"packed into {options.pack}:", pack(Path(options.pack).absolute()))
    elif options.unpack:
        _say("unpacked", unpack(Path(options.unpack).absolute(), cache_folder()))
    else:
        profile, workers = _chosen_profile(options), options.download_workers or 8
        prepared = prepare(profile, cache_folder(), workers, download=not options.no_download)
        if prepared is None:
            print(f"not prepared: {profile.source} is downloaded; the same without --no-download")
            return
        _say("prepared", prepared)
        if not os.environ.get("AUTOHYPOTHESIS_SETUP"):  # what comes next is said by who runs this
            print("next: python train.py")


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    end = words.index("--host") if "--host" in words else len(words)
    options = parser.parse_args(words[:end])
    options.host = words[end + 1 :]
    if bool(options.score) != bool(options.train):
        parser.error("--score RUN_DIR and --train TRAIN_PY go together")
    if options.json and not options.locate:
        parser.error("--json goes with --locate")
    if options.cache_dir:  # through the environment, so that a candidate reads the same cache
        os.environ["AUTORESEARCH_CACHE"] = options.cache_dir
    try:
        _run(options)
    except EvaluationError as error:
        print(json.dumps({"error": str(error), "kind": error.kind}), flush=True)
        return 1
    except (PrepareError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
