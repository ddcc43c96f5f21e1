#!/usr/bin/env bash
# The machine as JSON, and which profile fits it; exits 0 when trainings can run here.
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$home/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$home/orchestrator.py" check-hardware "$@"
