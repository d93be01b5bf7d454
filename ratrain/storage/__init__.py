"""The files of a run: its folder, checkpoints, notes, and digests of its source files."""
