"""Measurements of ratrain, run from the root of the repository: costs, commits compared, GPUs, rehearsals."""
