#!/usr/bin/env bash
# Lint, format check, types, tests and doctests, in the environment that is active. Arguments go to pytest; `-n 0` runs
# the tests in one process, in place of two that take a file each.
set -euo pipefail
cd "$(dirname "$0")/.."
# Where the environment forbids bytecode, each of the many processes that the tests start compiles all that it imports.
unset PYTHONDONTWRITEBYTECODE
ruff check .
ruff format --check .
mypy
lint-imports
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n 2 --dist loadfile "$@"
