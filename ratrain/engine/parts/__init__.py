"""The optional parts of a run, one file each; `part.py` defines their protocol."""
