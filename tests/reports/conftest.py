"""Cards are rendered in most of these tests."""

from cards_for_tests import template_compiled_once  # noqa: F401
