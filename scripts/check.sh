#!/usr/bin/env bash
# Lint, format check, types, tests and doctests, in the environment that is active.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
HF_HUB_OFFLINE=1 python -m pytest -m "not slow" "$@"
