"""One iteration of a task under its published name: `orchestrator.py task run PATH`.

    python scripts/run_task.py --task tasks/skill-quality/task.yaml [--iterations N] ...

Whatever else is said is passed on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import orchestrator


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One iteration; other options are those of `orchestrator.py task run`.",
        allow_abbrev=False,
    )
    parser.add_argument("--task", required=True, metavar="PATH", help="a task.yaml")
    options, more = parser.parse_known_args()
    sys.argv = ["orchestrator.py", "task", "run", options.task, "--iterations", "1", *more]
    orchestrator.main()


if __name__ == "__main__":
    main()
