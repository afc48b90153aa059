"""One run, from its arguments to a complete folder: the stages, the folder, the record and the console.

May import every room below it in rts_hf/README.md: all but ``comparing``.
"""
