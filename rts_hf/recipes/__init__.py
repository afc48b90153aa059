"""Settings by name, frozen, each with the figures that were recorded for it.

May import ``training`` and what lies below it.
"""
