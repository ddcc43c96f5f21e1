"""Puts what a research repository begins with into the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = ("prepare.py", "train.py", "program.md", "SKILL.md", "tasks")
"""They lie at the root of a clone; `engine/project.py` finds them in both places."""


class BuildWithFiles(build_py):
    """Adds `autohypothesis/_files/` to a wheel; an editable install uses the clone's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "autohypothesis" / "_files"
        target.mkdir(parents=True, exist_ok=True)
        for path in map(Path, FILES):
            if path.is_dir():
                leave_out = shutil.ignore_patterns("__pycache__", "work")
                shutil.copytree(path, target / path, ignore=leave_out, dirs_exist_ok=True)
            else:
                shutil.copy2(path, target)


setup(cmdclass={"build_py": BuildWithFiles})
