"""One experiment's records, `research/runs/<experiment_id>/` and its plan, and the decisions.

Reading never fails as a whole: a file that is damaged is named in `damage`, one that is absent is
None, and what older tools left (no metadata.json, numbers as text, `hyperparameters` in place of a
flat config, a prediction in words) comes out in the shape of today. Writing is whole files, from
models only.

Whether a file changed is asked with one `lstat`: ten thousand bundles are a matter of a tenth of a
second.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic_core import CoreSchema, SchemaValidator, core_schema, from_json

from autohypothesis import schema
from autohypothesis.errors import RecordError
from autohypothesis.records import jsonl
from autohypothesis.records.files import (
    JSON_LIMIT,
    MTIME_GRANULARITY_NS,
    FileStamp,
    as_object,
    file_stamp,
    is_utf8,
    open_folder,
    parse_json,
    read_with_status,
    validated,
    write_json,
)
from autohypothesis.records.ids import slug
from autohypothesis.records.layout import ID, Layout, RunPaths
from autohypothesis.schema import Decision, ExitRecord, Metadata, Plan, Result
from autohypothesis.system import boot_id, is_alive

Document = dict[str, Any]
"""A document in canonical shape: every key of its model is there."""
ABSENT = FileStamp(0, 0, 0, 0, 0)
"""Unlike None it has the same hash in every process."""
UNSETTLED = -1
"""Stands for the hash of signatures, which is never -1: it is to be read again in any case."""
PAGE_LIMIT = 2_000
"""Characters of a plan's page that a row repeats."""
NOT_UTF8 = "has a name that is not UTF-8, and is left alone; give it another name"

_MODELS: tuple[tuple[str, type[BaseModel] | None], ...] = (
    ("config.json", None),
    ("metadata.json", Metadata),
    ("result.json", Result),
    ("exit.json", ExitRecord),
)
"""The files of a bundle that a row is made from. shim.json counts while there is no result."""
_PAGE_BYTES = 1024 * 1024


_NOTHING: Document = {}
Damage = list[str]
"""[path, reason] of a file that could not be used; the reason follows its name in a sentence."""


class ExperimentPaths(NamedTuple):
    """Paths of one experiment's records; None where there is none."""

    experiment_id: str
    run: str | None
    plan: str | None
    page: str | None


class Records(NamedTuple):
    """One experiment's records, each document in the canonical shape of its model."""

    experiment_id: str
    folder: str | None = None
    """The folder of its run."""
    config: Document = _NOTHING
    """The hyper-parameters, flat, in lower case."""
    metadata: Document | None = None
    result: Document | None = None
    exit: Document | None = None
    shim_seen: bool = False
    shim_lives: bool = False
    """Whether the shim that wrote shim.json lives; asked only while there is no result."""
    plan: Document | None = None
    page: str | None = None
    damage: Sequence[Damage] = ()
    signature: int = UNSETTLED
    """The hash of the signatures of its files; UNSETTLED when one changed just now, or its shim
    lives: then its state may change with no file changing."""

    @property
    def source_id(self) -> str:
        """The name of the run's folder, where it is not usable as an id."""
        name = os.path.basename(self.folder or self.experiment_id)
        return "" if name == self.experiment_id else name


def find(layout: Layout) -> tuple[dict[str, ExperimentPaths], list[Damage]]:
    """Return every experiment that has a run folder or a plan, by id, and what is neither."""
    damage: list[Damage] = []
    runs = _listed(layout.runs, damage, folders=True)
    files = _listed(layout.plans, damage, folders=False)
    found, make, take = {}, tuple.__new__, files.pop
    for name in sorted(runs):
        key = name if ID.fullmatch(name) else slug(name)
        paths = (key, runs[name], take(f"{name}.json", None), take(f"{name}.md", None))
        found[key] = make(ExperimentPaths, paths)  # in half the time
    for name in sorted(files):  # of experiments without a run, or with one of another name
        stem, suffix = os.path.splitext(name)
        key, kind = slug(stem), {".json": "plan", ".md": "page"}.get(suffix)
        if kind == "plan":
            found.setdefault(key, ExperimentPaths(key, None, None, None))
        if kind and key in found and getattr(found[key], kind) is None:
            found[key] = found[key]._replace(**{kind: files[name]})
    return found, damage


def _listed(folder: Path, damage: list[Damage], *, folders: bool) -> dict[str, str]:
    """Return name -> path of each entry; a run must be a folder, and no link to one."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if not is_utf8(name):
                    damage.append([entry.path, NOT_UTF8])
                elif folders and not entry.is_dir(follow_symlinks=False):
                    damage.append([entry.path, "is not the folder of a run"])
                else:
                    found[name] = entry.path
    except FileNotFoundError:
        pass
    except OSError as error:
        damage.append([str(folder), f"cannot be listed: {error.strerror}"])
    return found


@contextmanager
def looking(layout: Layout) -> Iterator[Callable[[ExperimentPaths, bool], int]]:
    """Yield a function that returns the signature that `read` notes, from the status of files.

    Its second argument tells whether exit.json was there before: a guess that is right saves time.
    Paths begin at an open research/, which saves a quarter of it.
    """
    start = len(f"{layout.research}/")

    def signature(places: ExperimentPaths, exited: bool) -> int:
        _, run, plan, page = places
        if run is None or plan is None or page is None:
            return _careful_signature(run, plan, page)
        short, plans = run[start:], (plan[start:], page[start:])
        files = (f"{short}/config.json", f"{short}/metadata.json", f"{short}/result.json")
        try:
            if exited:
                return hash(
                    tuple(map(_FIELDS, map(status, (*files, f"{short}/exit.json", *plans))))
                )
            if not exists(f"{short}/exit.json"):
                found = [_FIELDS(status(path)) for path in (*files, *plans)]
                return hash((*found[:3], ABSENT, *found[3:]))
        except OSError:
            pass
        return _careful_signature(run, plan, page)

    with open_folder(layout.research) as research:
        status = partial(os.stat, dir_fd=research, follow_symlinks=False)
        exists = partial(os.access, mode=os.F_OK, dir_fd=research, follow_symlinks=False)
        yield signature


_FIELDS = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
"""Gives the fields of a FileStamp, to whose hash theirs is equal, in less time."""


def _careful_signature(run: str | None, plan: str | None, page: str | None) -> int:
    stamps = [] if run is None else [_stamp(f"{run}/{name}") for name in _NAMES]
    if run is not None and stamps[_RESULT] == ABSENT:
        stamps.append(_stamp(f"{run}/shim.json"))
    stamps += [_stamp(path) for path in (plan, page) if path is not None]
    return hash(tuple(stamps))


def _stamp(path: str) -> tuple[int, ...]:
    try:
        return _FIELDS(os.lstat(path))
    except OSError:
        return ABSENT


_NAMES = [name for name, _ in _MODELS]
_RESULT = _NAMES.index("result.json")


def uncollected(layout: Layout) -> list[str]:
    """Return the ids of runs that were begun and have no collected result."""
    with suppress(FileNotFoundError, NotADirectoryError), open_folder(layout.runs) as runs:
        exists = partial(os.access, mode=os.F_OK, dir_fd=runs)
        names = sorted(os.listdir(runs))
        return [one for one in names if _is_uncollected(one, exists) and ID.fullmatch(one)]
    return []


def is_begun(run: RunPaths) -> bool:
    """Return whether an experiment was submitted or refused on record.

    Before that a kill leaves a plan, and a folder in which nothing can be judged.
    """
    return run.run_spec.exists() or run.result.exists()


def is_of_no_search(run: RunPaths) -> bool:
    """Return whether another tool made it: its metadata.json has no tag.

    It is asked of the text first, since a tree that was taken over may have ten thousand such runs.
    Where it is damaged, which the fold names, what the engine did not begin is of no search.
    """
    try:
        content = read_with_status(run.metadata)[0]
        return b'"tag"' not in content and bool(canonical(Metadata, content))
    except FileNotFoundError:
        return False
    except (RecordError, ValueError):
        return not run.run_spec.exists()


def is_to_be_collected(run: RunPaths) -> bool:
    """Return whether a run that was begun has no result, or one that may be its own.

    `collect` deletes the homes of a run last: a result beside them was written by the run, or by
    a process that was killed before it had cleaned up.
    """
    return _is_uncollected(str(run.folder), os.path.exists)


_ANY = RunPaths(Path())
_BEGUN, _ENDED = str(_ANY.run_spec), str(_ANY.result)
_HOMES = (str(_ANY.scoring_home), str(_ANY.home))


def _is_uncollected(run: str, exists: Callable[[str], bool]) -> bool:
    return exists(f"{run}/{_BEGUN}") and (
        not exists(f"{run}/{_ENDED}") or any(exists(f"{run}/{home}") for home in _HOMES)
    )


class _FileReader:
    def __init__(self) -> None:
        self.damage: list[Damage] = []
        self.stamps: list[FileStamp] = []

    def document(self, path: str, model: type[BaseModel] | None) -> Document | None:
        content = self.content(path, JSON_LIMIT)
        if content is None:
            return None
        try:
            return plain_object(content) if model is None else canonical(model, content)
        except ValueError as error:
            self.damage.append([path, str(error)])
            return None

    def content(self, path: str, limit: int) -> bytes | None:
        try:
            content, status = read_with_status(path, limit)
        except FileNotFoundError:
            self.stamps.append(ABSENT)
            return None
        except RecordError as error:
            self.damage.append([path, reason_in(error, path)])
            self.stamps.append(file_stamp(path) or ABSENT)
            return None
        self.stamps.append(FileStamp.of(status))
        return content

    def page(self, path: str) -> str | None:
        content = self.content(path, _PAGE_BYTES)
        if content is None:
            return None
        try:
            return content.decode()[:PAGE_LIMIT]
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8: {error.reason} at byte {error.start}"
            self.damage.append([path, reason])
            return None


def read(places: ExperimentPaths) -> Records:
    """Read all records of one experiment, whatever state they are in."""
    started, reader = time.time_ns(), _FileReader()
    metadata = result = exit_record = shim = None
    config: Document = _NOTHING
    if places.run is not None:
        found, metadata, result, exit_record = (
            reader.document(f"{places.run}/{name}", model) for name, model in _MODELS
        )
        config = flat_settings(found, metadata, result)
        if result is None:
            shim = reader.document(f"{places.run}/shim.json", None)
            if reader.stamps[_RESULT] != ABSENT:  # result.json is damaged: `looking`
                reader.stamps.pop()  # asks for shim.json only where there is none
    plan = reader.document(places.plan, Plan) if places.plan is not None else None
    page = reader.page(places.page) if places.page is not None else None
    newest = max((stamp.mtime_ns for stamp in reader.stamps), default=0)
    settling, lives = newest > started - MTIME_GRANULARITY_NS, _lives(shim)
    signature = UNSETTLED if settling or lives else hash(tuple(reader.stamps))
    return Records(
        places.experiment_id, places.run, config, metadata, result, exit_record,
        shim is not None, lives, plan, page, reader.damage, signature,
    )  # fmt: skip


def read_bundle(run: RunPaths) -> Records:
    """Read the bundle in `run`'s folder, whatever state it is in, without its plan."""
    return read(ExperimentPaths(slug(run.folder.name), str(run.folder), None, None))


def reason_in(error: RecordError, path: object) -> str:
    """Return the reason of an error without the path that it begins with."""
    return error.problem.removeprefix(f"{path} ")


def _lives(shim: Document | None) -> bool:
    if not shim:
        return False
    pid, start = shim.get("pid"), shim.get("start")
    if not isinstance(pid, int) or not isinstance(start, (int, float)):
        return False
    return shim.get("boot") in (None, boot_id()) and is_alive(pid, start)


def flat_settings(config: Document | None, *elsewhere: Document | None) -> Document:
    """Return the hyper-parameters by their names in lower case, from a config.json.

    Its own `hyperparameters` stand above its other keys; where it has none, as with older tools,
    those of the other documents do.
    """
    config = config or {}
    nested = (document.get("hyperparameters") for document in (config, *elsewhere) if document)
    named = next((found for found in nested if found and isinstance(found, dict)), None)
    if named is None:
        return {key.lower(): value for key, value in config.items()}
    flat = {key.lower(): value for key, value in config.items() if key != "hyperparameters"}
    flat.update((key.lower(), value) for key, value in named.items())
    return flat


def write_config(run: RunPaths, config: Mapping[str, Any]) -> None:
    """Write the hyper-parameters, flat and once more under `hyperparameters`, in lower case."""
    flat = {key.lower(): value for key, value in config.items()}
    write_json(run.config, {**flat, "hyperparameters": flat})


def write_metadata(run: RunPaths, metadata: Metadata) -> None:
    write_json(run.metadata, metadata)


def write_result(run: RunPaths, result: Result) -> None:
    write_json(run.result, result)


def read_decisions(layout: Layout) -> tuple[list[Decision], list[str]]:
    """Every decision in its order, and what was wrong with lines that hold none.

    Raises:
        RecordError: decisions.jsonl is no regular file, or far too large.
    """
    documents, problems = decision_documents(layout)
    return [Decision.model_validate(document) for document in documents], problems


def decision_documents(layout: Layout) -> tuple[list[Document], list[str]]:
    """Read decisions like `read_decisions`, in canonical shape; a repeated record counts once."""
    try:
        content, _ = read_with_status(layout.decisions, jsonl.FILE_LIMIT)
    except FileNotFoundError:
        return [], []
    documents, problems = jsonl.parse(content, lambda line: canonical(Decision, line))
    seen: dict[tuple[str, str], Document] = {}
    for decision in documents:
        seen.setdefault((decision["decision_id"], decision["experiment_id"]), decision)
    return list(seen.values()), problems


# ── documents ───────────────────────────────────────────────────────────────────────────────
#
# Ten thousand bundles are folded in a second only if an ordinary document costs a few microseconds:
# no model is made of it, and no Python is called for its fields. So each model is compiled into a
# strict dictionary schema that knows the canonical spelling: numbers that are numbers, times as we
# write them, or as the published format has them. What does not fit, an old bundle or a damaged
# one, goes through the model, with all its tolerance, and comes out in the same shape.

TIME = (
    r"^(?:19[7-9]\d|[2-8]\d{3})-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z$"
)
"""A time as `schema.rfc3339` writes it; the 29th of February takes the long way."""

_KEPT: dict[type[BaseModel], tuple[str, ...]] = {
    schema.Metrics: ("model_dim", "n_heads", "head_dim"),
    schema.Result: ("hyperparameters", "val_bpb"),
}
"""Keys that the model lacks and rows need."""
_TOLERANT_READERS = (schema.finite, schema.whole, schema.utc)
_NONE = type(None)
_EXACT = 2**53
"""Beyond it a float no longer holds every integer, and `schema.whole` goes by way of one."""


def canonical(model: type[BaseModel], content: bytes) -> Document:
    """`content` as a document of `model`.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    try:
        return _strict_reader(model)(content)
    except ValueError:
        return canonical_value(model, parse_json(content))


def canonical_value(model: type[BaseModel], value: object) -> Document:
    """Return the canonical document of a value that is parsed already.

    A null where the model has none is an absent field: other tools write it so.
    """
    try:
        made = validated(model, value)
    except ValueError:
        made = validated(model, _without_nulls(value))
    return {**_absent(model), **made.model_dump(mode="json")}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return value


def plain_object(content: bytes) -> Document:
    """`content` as any object at all: config.json, whose keys are the experiment's own.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    try:
        value = from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        value = parse_json(content)
    return as_object(value)


@cache
def _strict_reader(model: type[BaseModel]) -> Callable[[bytes], Document]:
    return SchemaValidator(_strict(_dictionary(model))).validate_json


@cache
def _absent(model: type[BaseModel]) -> Document:
    return dict.fromkeys(_KEPT.get(model, ()))


def _strict(shape: Any) -> Any:
    """The schema with every conversion off: true is no 1, "1" is no 1, NaN is no number."""
    if isinstance(shape, list):
        return [_strict(inner) for inner in shape]
    if not isinstance(shape, dict):
        return shape
    made = {key: inner if key == "default" else _strict(inner) for key, inner in shape.items()}
    if made.get("type") in ("float", "int", "str", "bool"):
        made["strict"] = True
    if made.get("type") == "float":
        made["allow_inf_nan"] = False
    return made


def _dictionary(model: type[BaseModel]) -> CoreSchema:
    fields = {}
    for name, field in model.model_fields.items():
        shape = _shape(field.annotation, tuple(field.metadata))
        if not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data={})
            shape = _with_default(shape, default)
        fields[name] = core_schema.typed_dict_field(shape, required=field.is_required())
    for name in _KEPT.get(model, ()):
        anything = core_schema.with_default_schema(core_schema.any_schema(), default=None)
        fields[name] = core_schema.typed_dict_field(anything, required=False)
    if model is schema.Metrics:
        # Older units are converted by the model; 0.0 in place of a score is no measurement.
        old = core_schema.with_default_schema(core_schema.none_schema(), default=None)
        fields["peak_vram_gb"] = core_schema.typed_dict_field(old, required=False)
        score = _either(core_schema.float_schema(gt=0), _no_score)
        fields["val_bpb"] = core_schema.typed_dict_field(_or_none(score), required=False)
    unknown: Literal["forbid", "ignore"] = (
        "forbid" if issubclass(model, schema.Strict) else "ignore"
    )
    return core_schema.typed_dict_schema(fields, extra_behavior=unknown)


def _with_default(shape: CoreSchema, default: Any) -> CoreSchema:
    """A mutable default would be copied deeply each time; this one is shared, and never changed."""
    if isinstance(default, BaseModel):
        default = {**_absent(type(default)), **default.model_dump(mode="json")}
    if isinstance(default, (dict, list)):
        return core_schema.with_default_schema(shape, default_factory=lambda: default)
    return core_schema.with_default_schema(shape, default=default)


def _either(shape: CoreSchema, other: Callable[[Any], Any]) -> CoreSchema:
    """The shape, else what `other` makes of a value that other tools write."""
    choices = [shape, core_schema.no_info_plain_validator_function(other)]
    return core_schema.union_schema(list(choices), mode="left_to_right")


def _no_score(value: Any) -> None:
    if type(value) not in (int, float) or not value <= 0:
        raise ValueError("no number that stands for a crash")


def _other_time(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no time as text")
    moment = schema.utc(value)
    assert isinstance(moment, datetime), "any text that is no time was refused"
    return schema.rfc3339(moment)


def _or_none(shape: CoreSchema) -> CoreSchema:
    return core_schema.with_default_schema(core_schema.nullable_schema(shape), default=None)


def _plain_shape(kind: Any) -> CoreSchema | None:
    """Return the schema of a type that needs no adapter, which takes half a millisecond to make."""
    if make := _PLAIN.get(kind):
        return make()
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return core_schema.literal_schema(list(inner))
    if origin is dict:
        return core_schema.dict_schema(*map(_shape, inner))
    return core_schema.list_schema(_shape(inner[0])) if origin is list else None


_PLAIN: dict[Any, Callable[[], CoreSchema]] = {
    str: core_schema.str_schema,
    float: core_schema.float_schema,
    int: core_schema.int_schema,
    bool: core_schema.bool_schema,
    Any: core_schema.any_schema,
}


def _shape(kind: Any, metadata: tuple[Any, ...] = ()) -> CoreSchema:
    if get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
        inner = [_shape(member, metadata) for member in get_args(kind) if member is not _NONE]
        kind_schema = inner[0] if len(inner) == 1 else core_schema.union_schema(list(inner))
        return core_schema.nullable_schema(kind_schema)
    if get_origin(kind) is Annotated:
        return _shape(get_args(kind)[0], (*get_args(kind)[1:], *metadata))
    if any(getattr(item, "func", None) in _TOLERANT_READERS for item in metadata):
        metadata = ()  # they read other spellings of what is checked here in its canonical one
        if kind is int:
            return core_schema.int_schema(ge=-_EXACT, le=_EXACT)
    if not metadata and kind is datetime:
        return _either(core_schema.str_schema(pattern=TIME), _other_time)
    if not metadata and isinstance(kind, type) and issubclass(kind, BaseModel):
        return _dictionary(kind)
    if not metadata and (plain := _plain_shape(kind)):
        return plain
    annotated: Any = Annotated[(kind, *metadata)] if metadata else kind
    adapter: TypeAdapter[Any] = TypeAdapter(annotated)
    return adapter.core_schema
