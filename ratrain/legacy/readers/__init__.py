"""What the reference left behind, as ratrain reads it: configurations, checkpoints, metrics. Never written."""
