"""Optimizers side by side at equal budgets, over seeds: runs made and tuned, tables, pictures and a page.

May import every room; only the commands import it.
"""
