"""Old mechanisms, as patches: found by name through the registry, never imported by the engine."""

if not __name__.startswith("ratrain."):
    raise ImportError("this package is imported as ratrain.legacy")
