#!/usr/bin/env bash
# One experiment on what is in the working tree: val_bpb, memory, seconds and log on one line.
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$home/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$home/orchestrator.py" run-experiment "$@"
