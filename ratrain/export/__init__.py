"""The weights of a run for other programs: one file, a folder for transformers, a checkpoint for nanoGPT."""
