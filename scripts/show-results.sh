#!/usr/bin/env bash
# What the search found: show-results.sh [--top 10] [--kept-only]
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$home/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$home/orchestrator.py" show-results "$@"
