"""Optimizers, one a file; each is an OptimSection with `build(groups)`."""
