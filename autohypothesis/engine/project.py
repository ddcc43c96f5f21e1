"""A repository with its task and its tag: what every command and every loop works in.

A *tag* is one search, with a reference of its own (reference.py). One tag at a time is active; the
manifest names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from autohypothesis import schema
from autohypothesis.engine import shim
from autohypothesis.engine.inputs import locate_inputs
from autohypothesis.engine.reference import (
    BRANCHES,
    REFERENCES,
    fetch_command,
    move_reference,
    read_reference,
    reference_ref,
)
from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import default_task, load_task, task_of_script
from autohypothesis.errors import AutohypothesisError, GitError, SettleError, UsageError
from autohypothesis.installation import IN_CLONE, as_called, is_clone
from autohypothesis.plain import plain_line, templates
from autohypothesis.records.files import load_or_none, remove_folder, write_atomic, write_json
from autohypothesis.records.git import EXPERIMENTS, LINK, Repository
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.records.ledger import active_tag
from autohypothesis.records.locks import held
from autohypothesis.records.outputs import refuse_foreign_ledger
from autohypothesis.records.rows import IMPORTED
from autohypothesis.records.tables import HEADER
from autohypothesis.schema import Manifest, SearchSettings, now


def todays_tag() -> str:
    """Return `nov20` on the 20th of November, as these branches are named by hand."""
    day = date.today()
    return f"{day:%b}{day.day}".lower()


@dataclass(frozen=True)
class Project:
    """One repository, one task, and the tag that is active, if there is one yet."""

    repository: Repository
    layout: Layout
    task: Task
    tag: str | None
    scores_itself: bool = False
    """Whether the task has an evaluator, and the script none of what it needs: what the script
    prints is its score then."""

    @classmethod
    def open(cls, path: Path, *, task: Path | None = None, tag: str | None = None) -> Project:
        """Return the project around `path`, which may be a subfolder or a worktree.

        Raises:
            GitError: not in a repository.
            TaskError: its task file is wrong.
        """
        repository = Repository.find(path)
        layout = Layout(repository.root)
        active = checked_id(tag) if tag else active_tag(layout)
        chosen = (
            load_task(task, repository.tracked_files(), root=repository.root)
            if task is not None
            else default_task(
                repository,
                _script_folders(repository, layout, path, active),
                of_search=_task_file(layout, active),
            )
        )
        if chosen.network is None and hub_url(layout):
            # What others wrote is run here, and after a keep is in whatever is run.
            chosen = chosen.model_copy(update={"network": False})
        fitting = chosen
        if chosen.scorer.type == "model":
            fitting = _for_its_script(chosen, repository, active)
        return cls(repository, layout, fitting, active, fitting is not chosen)

    @classmethod
    def of_search(cls, path: Path, *, tag: str | None = None) -> Project:
        """Return it with the task of a search, wherever its file is; default: the active search.

        Raises:
            GitError, TaskError: as `open`.
        """
        layout = Layout(Repository.find(path).root)
        return cls.open(path, task=_task_file(layout, tag or active_tag(layout)), tag=tag)

    def with_tag(
        self,
        tag: str | None = None,
        *,
        base: str = "HEAD",
        inputs: Mapping[str, str] | None = None,
        activate: bool = True,
    ) -> Project:
        """Return this project on `tag` (default: the active, else today's), started if need be.

        Starting a tag makes its reference at `base`, pins its data, and makes it the active one,
        unless `activate` is false and there is another; that one's experiments stay as they are.
        `inputs` (variable -> folder) names the data, which is otherwise located.

        Raises:
            UsageError: an experiment of another tag is running, an observer works, or `tag` is
                a search of another task, or that of another tool's runs.
            FleetError: a file of the user's has the name of the ledger.
        """
        wanted = checked_id(tag or self.default_tag())
        refuse_foreign_ledger(self.repository, self.layout)
        if wanted == IMPORTED:
            raise UsageError(
                f"tag {wanted!r} is that of the runs which another tool left here",
                hint="name another: --tag NAME",
            )
        if (other := self._task_of(wanted)) not in ("", self.task.id):
            raise UsageError(
                f"tag {wanted!r} is a search of task {other!r}, not of {self.task.id!r}",
                hint="name another: --tag NAME",
            )
        current = active_tag(self.layout)
        if current not in (None, wanted):
            self._refuse_while_running(str(current), wanted)
        manifest = self._manifest(wanted, inputs) if current != wanted else None
        if manifest is not None and not activate:
            manifest = self._beside_the_active(manifest)
        if self.repository.read_ref(reference_ref(wanted)) is None:
            begun = read_reference(self.repository, self.layout, wanted)  # by an earlier version
            commit = begun or self.repository.resolve(base)
            move_reference(self.repository, wanted, commit, None)
        if manifest is not None:
            self.repository.exclude(self.layout.git_exclude_patterns)
            write_json(self.layout.manifest, manifest.model_dump(mode="json"))
        return replace(self, tag=wanted)

    def default_tag(self) -> str:
        """Return the active tag, if it is a search of this task; else a new one."""
        if self.tag is not None and self._task_of(self.tag) in ("", self.task.id):
            return self.tag
        return todays_tag()

    def reference(self) -> str:
        """Return the commit that new hypotheses start from.

        Raises:
            SettleError: no search has been started here.
        """
        commit = read_reference(self.repository, self.layout, self.tag) if self.tag else None
        if commit is None:
            raise no_search(self.repository, self.tag)
        return commit

    def refuse_without_artifacts(self, commit: str) -> None:
        """Raise a `GitError` where no file of `commit` is one that a search may change."""
        entries = self.repository.entries(commit)
        found = self.task.artifacts_in(entries)
        if not found:
            raise GitError(
                f"commit {commit[:12]}, which a search begins at, has no"
                f" {self.task.artifact_words}",
                hint="commit it; a search that has begun already goes on without: --tag NAME"
                " begins another",
            )
        if all(entries[path].mode == LINK for path in found):
            raise GitError(
                f"{found[0]} is a symbolic link, and a search changes files",
                hint="list the file that it leads to under `artifacts` in task.yaml;"
                " `python orchestrator.py init` writes one",
            )

    def active(self) -> str:
        """Return the tag, for code that runs after `with_tag`."""
        if self.tag is None:
            raise SettleError(
                f"no tag is active in {self.layout.root}",
                hint="start one with `python orchestrator.py run-experiment --tag NAME`",
            )
        return self.tag

    def _refuse_while_running(self, current: str, wanted: str) -> None:
        if holder := held(self.layout, "observer"):
            raise UsageError(
                f"tag {wanted!r} cannot start while tag {current!r} is observed by {holder}",
                hint="wait for it, or end it: python orchestrator.py down",
            )
        running = [name for name in run_ids(self.layout) if is_running(self.layout, name)]
        if running:
            raise UsageError(
                f"tag {wanted!r} cannot start while {running[0]} of tag {current!r} is running",
                hint=f"wait for it, or see `python orchestrator.py show {running[0]}`",
            )

    def _task_of(self, tag: str) -> str:
        """Return the id of the task that a tag searches; empty when that is unknown."""
        return _settings(self.layout).get(tag, SearchSettings()).task

    def _manifest(self, tag: str, inputs: Mapping[str, str] | None) -> Manifest:
        """Return the manifest of a tag which begins, or goes on with the terms that it had."""
        earlier, root = _settings(self.layout), self.layout.root
        terms = earlier.get(tag, SearchSettings()).model_dump()
        if inputs is not None:
            terms["inputs"] = dict(inputs)
        elif not terms["inputs"]:
            terms["inputs"] = locate_inputs(self.task, root, root, os.environ, pins={}).environment
        terms |= {"task": self.task.id, "task_file": self.task.source}
        if not self.task.source and self.task.run.cwd != ".":
            terms["folder"] = self.task.run.cwd
        return Manifest(
            tag=tag,
            created_at=now(),
            repository_root=str(root),
            shared_research_dir=str(self.layout.research),
            earlier=earlier,
            hub=hub_url(self.layout),
            **terms,
        )

    def _beside_the_active(self, begun: Manifest) -> Manifest:
        """Return the manifest as it is with the settings of `begun`; without one, `begun`."""
        active = load_or_none(Manifest, self.layout.manifest)
        if active is None:
            return begun
        earlier = {**active.earlier, begun.tag: _settings_of(begun)}
        return active.model_copy(update={"earlier": earlier})


def _settings_of(manifest: Manifest) -> SearchSettings:
    return SearchSettings.model_validate(
        manifest.model_dump(include=set(SearchSettings.model_fields))
    )


def _settings(layout: Layout) -> dict[str, SearchSettings]:
    """Return tag -> settings of every search that the manifest knows, the active one last."""
    manifest = load_or_none(Manifest, layout.manifest)
    if manifest is None:
        return {}
    return {**manifest.earlier, manifest.tag: _settings_of(manifest)}


def _task_file(layout: Layout, tag: str | None) -> Path | None:
    """Return the task file that a search was begun with; None where it had none, or is gone."""
    source = _settings(layout).get(tag or "", SearchSettings()).task_file
    return layout.root / source if source and (layout.root / source).is_file() else None


def _script_folders(
    repository: Repository, layout: Layout, path: Path, tag: str | None
) -> Iterator[str]:
    """Yield where a script may be, from the top: the folder that was named, that of the search."""
    named, top = os.path.realpath(path), os.path.realpath(repository.here)
    of_fleet = named.startswith(os.path.realpath(layout.worktrees) + os.sep)
    if named.startswith(top + os.sep) and not of_fleet:
        yield os.path.relpath(named, top)
    if tag and (folder := _settings(layout).get(tag, SearchSettings()).folder):
        yield folder


def no_search(repository: Repository, tag: str | None) -> SettleError:
    """Return the error of a command that needs a search where there is none, or none of `tag`."""
    search, fetch = f"search {tag!r} in" if tag else "search in", fetch_command(repository, tag)
    return SettleError(
        f"there is no {search} {repository.root}" + ("" if tag else " yet"),
        hint="start one with `python orchestrator.py run-experiment`"
        + (f", or fetch that of a remote: {fetch}" if fetch else "")
        + ("; `runs --all` has those that are here" if tag else ""),
    )


def _for_its_script(task: Task, repository: Repository, tag: str | None) -> Task:
    """Return `task` as it scores the script that the search of `tag` stands on, or begins with."""
    commit = repository.read_ref(reference_ref(tag)) if tag else None
    with suppress(GitError):
        script = repository.show_file(commit or repository.head(), task.artifacts[0])
        return task_of_script(task, script)
    return task


def hub_url(layout: Layout) -> str:
    """Return the hub that the fleet here shares with; empty where there is none."""
    manifest = load_or_none(Manifest, layout.manifest)
    return manifest.hub if manifest else ""


def run_ids(layout: Layout) -> list[str]:
    """Return every experiment that has a run folder; a folder whose name is no id has none."""
    folders = layout.runs.iterdir() if layout.runs.is_dir() else ()
    return sorted(path.name for path in folders if ID.fullmatch(path.name) and path.is_dir())


def is_running(layout: Layout, experiment_id: str) -> bool:
    """Return whether its shim lives: liveness decides, never age."""
    return shim.status(layout.run(experiment_id)) == "running"


_OF_TAGS = (BRANCHES, REFERENCES)
_OURS = (BRANCHES, "refs/autohypothesis/", EXPERIMENTS)


@contextmanager
def whole_or_nothing(repository: Repository, layout: Layout) -> Iterator[None]:
    """Undo what a command that begins a search did, at an error that comes before its first run.

    In a repository without a search nothing of ours is left; in another the active tag is again
    what it was. What another process has begun meanwhile is left alone.
    """
    is_fresh = not _entries(layout)
    manifest = _read(layout.manifest)
    refs = repository.refs(*(("refs/",) if is_fresh else _OF_TAGS))
    worktrees = {worktree.path for worktree in repository.worktrees()} if is_fresh else set()
    exclude_file = repository.common_dir / "info" / "exclude"
    exclude = _read(exclude_file)
    made = {layout.ledger, layout.results_tsv, layout.worktrees}
    made -= {path for path in made if os.path.lexists(path)}
    try:
        yield
    except AutohypothesisError:
        with suppress(AutohypothesisError, OSError):  # the first error is the one to show
            if is_fresh and is_untouched(layout):
                for worktree in repository.worktrees():
                    if worktree.path not in worktrees:
                        repository.worktree_remove(worktree.path)
                _delete_new_refs(repository, _OURS, refs)
                _remove_what_is_ours(layout, made)
                _restore_exclude(exclude_file, exclude)
            elif not is_fresh and _read(layout.manifest) != manifest:
                if manifest is not None:
                    write_atomic(layout.manifest, manifest)
                _delete_new_refs(repository, _OF_TAGS, refs)
        raise


def _delete_new_refs(
    repository: Repository, prefixes: Iterable[str], before: Mapping[str, str]
) -> None:
    for name, at in repository.refs(*prefixes).items():
        if name not in before:
            repository.delete_ref(name, at)


def _remove_what_is_ours(layout: Layout, made: Set[Path]) -> None:
    """Delete what lies in research/, and of the paths that were `made` in the root the empty."""
    for path in _entries(layout):
        remove_folder(path)
    for folder in (layout.research, *(made & {layout.worktrees})):
        with suppress(OSError):
            folder.rmdir()
    for path, empty in ((layout.ledger, b""), (layout.results_tsv, HEADER.encode())):
        if path in made and _read(path) == empty:
            path.unlink()


def _restore_exclude(path: Path, before: bytes | None) -> None:
    now = _read(path)
    if now is None or now == before or not now.startswith(before or b""):
        return  # where it has not only grown, others wrote to it
    if before is None:
        path.unlink()
    else:
        write_atomic(path, before)


def is_untouched(layout: Layout) -> bool:
    """Return whether research/ holds no run, plan or idea, and no process works there."""
    ours = (layout.locks, layout.fleet, layout.live, layout.aggregate)
    for path in _entries(layout):
        if path not in ours and (path.is_file() or any(p.is_file() for p in path.rglob("*"))):
            return False
    return not any(held(layout, path.stem) for path in layout.locks.glob("*.lock"))


def _entries(layout: Layout) -> list[Path]:
    """Return what lies in research/, its page left out."""
    with suppress(OSError):
        return [path for path in layout.research.iterdir() if path.name != "README.md"]
    return []


def _read(path: Path) -> bytes | None:
    with suppress(OSError):
        return path.read_bytes()
    return None


FILES = {
    "prepare.py": "prepare.py",
    "train.py": "train.py",
    "program.md": "program.md",
    "SKILL.md": "SKILL.md",
    "task.yaml": "tasks/pretrain/task.yaml",
    "task.schema.json": "tasks/task.schema.json",
}
"""The files of a search, and where they lie in `source_folder`; all else is made on use."""
OWN_IGNORED = (".venv", "__pycache__/", "/.cache/", "/run.log")
"""Made there by people, by hand."""


def source_folder() -> Path:
    """Return where the training pair lies: in the package as it was built, or in the clone."""
    package = Path(schema.__file__).resolve().parent
    built = package / "_files"
    return built if built.is_dir() else package.parent


def make_repository(root: Path) -> bool:
    """Make a research repository at `root`; False when it was made before.

    Raises:
        UsageError: something else is there, or this installation lacks the training pair.
    """
    if _is_made(root):
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} is there and is no research repository", hint="name another folder"
        )
    source = source_folder()
    missing = [name for name in FILES.values() if not (source / name).is_file()]
    if missing:
        raise UsageError(
            f"this installation has no {', '.join(missing)}",
            hint="install it again, or work from a clone of the project",
        )
    root.mkdir(parents=True, exist_ok=True)
    for name, original in FILES.items():
        shutil.copyfile(source / original, root / name)
        if name.endswith(".md"):  # pages name the command line as it is called here
            page = (root / name).read_text(encoding="utf-8")
            (root / name).write_text(as_called(page), encoding="utf-8")
    task = root / "task.yaml"
    text = task.read_text(encoding="utf-8")
    task.write_text(text.replace("$schema=../task", "$schema=task", 1), encoding="utf-8")
    (root / "README.md").write_text(_readme(root.name), encoding="utf-8")
    ignored = "\n".join((*OWN_IGNORED, "# made on use", *Layout(root).git_exclude_patterns))
    (root / ".gitignore").write_text(f"{ignored}\n", encoding="utf-8")
    Repository.create(root, "Start: the training pair and its task")
    return True


def _readme(name: str) -> str:
    """Return the first page of a new research repository."""
    clone = is_clone()
    program = f"{IN_CLONE} --repo PATH" if clone else "autohypothesis"
    page = templates(Path(__file__).parent / "templates").get_template("new_readme.md.j2")
    return page.render(name=plain_line(name), clone=clone, program=program).rstrip() + "\n"


def _is_made(root: Path) -> bool:
    """Return whether a repository of this kind is there, the ones of earlier releases included."""
    layout = Layout(root)
    return (
        (root / ".git").exists()
        and all((root / name).is_file() for name in ("prepare.py", "train.py"))
        and (layout.root_task.is_file() or layout.default_task.is_file())
        and Repository(root).read_ref("HEAD") is not None
    )
