"""The optional parts of a run, each in a file of its own; `part.py` is their protocol."""
