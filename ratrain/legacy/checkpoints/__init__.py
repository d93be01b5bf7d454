"""Reads checkpoints of the reference and converts them to runs."""
