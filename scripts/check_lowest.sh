#!/usr/bin/env bash
# The oldest versions that pyproject.toml asks for: a fresh environment of them in .venv-lowest, and one or two test files
# of each room. `PYTHON=python3.10` chooses the Python, which is to be the oldest too; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv --clear .venv-lowest
floors=.venv-lowest/floors.txt
grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' pyproject.toml | sed 's/"//g; s/>=/==/' > "$floors"  # so the two cannot differ
.venv-lowest/bin/pip install -q --no-compile -c "$floors" -e ".[tensorboard]" pytest
unset PYTHONDONTWRITEBYTECODE
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest "$@" \
  --deselect tests/models/test_classifiers.py::test_trainer_checkpoints_load_too `# timm reads such folders from 1.0.29` \
  tests/optim/test_optimizer.py tests/optim/test_unit_step.py tests/optim/test_attached.py \
  tests/models/test_small_image.py tests/models/test_classifiers.py \
  tests/data/test_loading.py tests/data/test_columns.py \
  tests/training/test_trainer.py tests/training/test_resumable.py tests/training/test_losses.py \
  tests/runs/test_command_line.py tests/runs/test_resumed_runs.py \
  tests/reports/test_card.py tests/reports/test_sharpness.py \
  tests/publishing/test_contents.py tests/publishing/test_hub.py \
  tests/comparing/test_comparison.py tests/comparing/test_method.py \
  tests/test_cli.py tests/test_upstream.py
