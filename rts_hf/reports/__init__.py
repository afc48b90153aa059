"""Pictures, tables, sharpness and the card: what tells of a finished run, made from its folder alone.

May import ``optim`` and ``training``.
"""
