"""Mechanisms of the reference, as patches, and readers of its files; the core knows them by the names in plugins.py."""

if not __name__.startswith("ratrain."):
    raise ImportError("this package is imported as ratrain.legacy")
