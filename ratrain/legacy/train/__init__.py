"""The command lines of the reference's trainers: `python -m ratrain.legacy.train ...`."""
