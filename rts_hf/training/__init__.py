"""What turns arguments into updates: arguments and their checks, :class:`RTSTrainer`, its windows, faults, metrics and
checkpoints.

May import ``optim``, ``data``, ``models`` and ``rts_hf.files``.
"""
