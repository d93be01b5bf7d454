"""Readers of the reference's files: configurations, checkpoints, metrics. Nothing is written in these formats."""
