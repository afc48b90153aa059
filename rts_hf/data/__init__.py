"""Images and labels: where they come from, how they are split, and the batches made of them.

Imports nothing of the package but ``rts_hf.connection``.
"""
