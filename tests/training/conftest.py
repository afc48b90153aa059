"""Fixtures for every test file of this room."""

from training_for_tests import frozen_imports  # noqa: F401
