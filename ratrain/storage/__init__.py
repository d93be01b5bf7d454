"""The files of a run: its folder, checkpoints, notes, and digests of the sources that it used."""
