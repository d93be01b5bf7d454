"""The first minutes on a GPU: checks and times the kernels, then whole train steps."""
