#!/usr/bin/env bash
# The loop: baseline, then change, train, keep or discard: run-loop.sh [--max 20] [--desc TEXT]
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$home/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$home/orchestrator.py" run-loop "$@"
