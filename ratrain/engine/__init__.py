"""The run of one manifest: the loop, the compiled step, evaluation, checkpoints."""
