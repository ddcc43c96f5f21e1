"""What the engine knows of a run by itself, beside what the run has printed of itself."""

from __future__ import annotations

import os
import pickle
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autohypothesis.engine.experiment import RunSpec
from autohypothesis.records.files import load_or_none
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import ExitRecord, Metadata, finite

LONG_LINE = 2_048
"""Characters of an added line of source that are worth a look: nobody writes such a line, but
data can be spelled out in one."""
MAX_REMARKS = 8
OUTSIDE_SHARE = 1.5
"""Of the longest baseline. Honest runs take 0.9 to 1.2 times as much CPU time as each other outside
of their clock, measured on a machine with six times more to do than it has cores."""
OUTSIDE_CPU_S = 1.0
OUTSIDE_WALL_S = 60.0
"""Seconds beside that share. Wall time depends on compilation, and on what else is running."""
_TOLERANCES: Mapping[str, tuple[float, float]] = {
    "depth": (0.0, 0.0),
    "seed": (0.0, 0.0),
    "training_seconds": (0.2, 0.03),
    "num_params_M": (0.002, 0.05),
}
"""Metric -> how far a printed value may be from the known one: by itself, and as a share. Weights
may hold buffers, which a training does not count."""


def known_metrics(spec: RunSpec, run: RunPaths, record: ExitRecord) -> dict[str, float]:
    """Return the metrics that the engine knows: `depth` from the source, `training_seconds` from
    the clock that the kernel's account agrees with; where weights are scored `seed`, which it gave,
    and `num_params_M` from the weights' headers."""
    known: dict[str, float | None] = {"depth": finite(spec.config.get("depth"))}
    if record.clock.verdict == "ok":
        known["training_seconds"] = record.clock.claimed_s
    if spec.task.scorer.type == "model":
        parameters = count_parameters(run.weights)
        known["seed"] = spec.seed
        known["num_params_M"] = None if parameters is None else round(parameters / 1e6, 6)
    return {name: value for name, value in known.items() if value is not None}


def untrue_metrics(printed: Mapping[str, Any], known: Mapping[str, float]) -> list[str]:
    """Describe each printed metric that is not the known one."""
    remarks = []
    for name, value in known.items():
        said, (least, share) = finite(printed.get(name)), _TOLERANCES[name]
        if said is not None and abs(said - value) > least + share * abs(value):
            remarks.append(f"it printed {name} {said:g}, which is {value:g}")
    return remarks


def untrue_score(printed: object, scored: float | None, *, on_gpu: bool) -> str:
    """Return how a printed score is not the one that its weights have, beyond rounding; else "".

    A GPU computes in less precise numbers, and in another order when a model is compiled.
    """
    said, share = finite(printed), 0.005 if on_gpu else 0.001
    if said is None or scored is None or abs(said - scored) <= share * abs(scored):
        return ""
    return f"the training printed a score of {said:g}, its weights have {scored:g}"


def work_outside(run: RunPaths, record: ExitRecord, usual: Iterable[RunPaths]) -> str:
    """Return how a run worked much longer outside of its clock, before its start or after its stop,
    than `usual` runs of the same platform do; "" where it did not, or nothing is known.

    In CPU time of all its processes where the budget is in that, else in wall time.
    """
    seconds, platform = _seconds_outside(record), _platform(run)
    if seconds is None or not platform:
        return ""
    others = (load_or_none(ExitRecord, each.exit) for each in usual if _platform(each) == platform)
    known = [_seconds_outside(other) for other in others if other is not None]
    most = max((one for one in known if one is not None), default=None)
    spare = OUTSIDE_CPU_S if record.clock.clock == "cpu" else OUTSIDE_WALL_S
    if most is None or seconds <= (limit := OUTSIDE_SHARE * most + spare):
        return ""
    return (
        f"{seconds:.1f} s of {record.clock.clock} time outside of its clock, before it or after it;"
        f" the baseline takes {most:.1f} s, the limit is {limit:.1f} s"
    )


def _seconds_outside(record: ExitRecord) -> float | None:
    clock = record.clock
    spent = record.cpu_seconds if clock.clock == "cpu" else record.wall_seconds
    ended_well = record.status == "exited" and record.exit_code == 0 and clock.verdict == "ok"
    if not ended_well or spent is None or clock.kernel_s is None:
        return None
    return spent - clock.kernel_s


def _platform(run: RunPaths) -> str:
    metadata = load_or_none(Metadata, run.metadata)
    return metadata.runtime.platform_key if metadata else ""


def long_lines(diff: str) -> list[str]:
    """Describe the lines that a diff adds and that are longer than `LONG_LINE` characters."""
    remarks, path, number = [], "", 0
    for line in diff.split("\n"):
        if line.startswith("+++ "):
            path = line[4:].removeprefix("b/")
        elif hunk := re.match(r"@@ -\S+ \+(\d+)", line):
            number = int(hunk[1]) - 1
        elif line[:1] in ("+", " "):
            number += 1
            if line[0] == "+" and len(line) > LONG_LINE:
                where = f"{path[:100]}:{number}"
                remarks.append(f"{where} is a line of {len(line) - 1:,} characters: look at it")
    return remarks[:MAX_REMARKS]


# ── weights, without running anything that they name ────────────────────────────────────────

_HEADER_BYTES = 16 << 20
"""Of the pickled header and of the list of files in weights.pt."""
_WIDTH = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1,
}  # fmt: skip
"""Bytes of an element in each of torch's kinds of storage."""


class _Inert:
    """Stands for whatever a header names: it takes everything and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    append = extend = add = __setstate__


class _HeaderReader(pickle._Unpickler):
    """Reads which storages a header names, and makes no object of its classes.

    In Python: the one in C takes as much memory as a header of a few bytes asks for.
    """

    def __init__(self, file: Any, files: Mapping[str, int]) -> None:
        super().__init__(file)
        self.files = files
        self.elements: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        is_storage = module == "torch" and name.endswith("Storage")
        return name.removesuffix("Storage") if is_storage else _Inert

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, *_ = pid
        if kind == "storage" and isinstance(storage, str) and isinstance(key, str):
            self.elements[key] = self.files[key] // _WIDTH[storage]
        return _Inert()


def count_parameters(weights: Path) -> int | None:
    """Return the number of elements of all tensors in a file of torch's, shared ones once; None
    where it is no such file."""
    try:
        with open(weights, "rb", opener=_no_link) as raw:
            if not _is_small_archive(raw):
                return None
            with zipfile.ZipFile(raw) as archive:
                return _elements(archive)
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, *_BROKEN):
        return None


_BROKEN = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, OverflowError,
    MemoryError, struct.error,
)  # fmt: skip
"""What Python's readers raise of damaged archives and headers, beside their own errors."""


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _is_small_archive(raw: Any) -> bool:
    """Return whether it is a plain file whose list of files, at its end, is not too large."""
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode):
        return False
    raw.seek(max(status.st_size - (1 << 16) - 22, 0))
    tail = raw.read()
    end = tail.rfind(b"PK\x05\x06")
    return end >= 0 and int.from_bytes(tail[end + 12 : end + 16], "little") <= _HEADER_BYTES


def _elements(archive: zipfile.ZipFile) -> int | None:
    header, files = None, {}
    for entry in archive.infolist():
        folder, _, name = entry.filename.rpartition("/")
        if entry.compress_type != zipfile.ZIP_STORED:
            continue
        if name == "data.pkl" and entry.file_size <= _HEADER_BYTES:
            header = entry
        elif folder.endswith("/data"):
            files[name] = entry.file_size
    if header is None:
        return None
    with archive.open(header) as file:
        reader = _HeaderReader(file, files)
        reader.load()
    return sum(reader.elements.values())
