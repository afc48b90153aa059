"""What tells of a finished run: pictures, tables and the card, made from its folder alone; sharpness and loss surfaces.

May import ``training`` and what lies below it.
"""
