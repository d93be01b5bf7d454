"""Optimizers, one per file; each is an OptimSection with `build(groups)`."""
