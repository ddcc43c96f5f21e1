#!/usr/bin/env bash
# One-time setup of the repository in the current folder: setup.sh [--seq-len 512]
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$home/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$home/orchestrator.py" setup "$@"
