"""Compares the working tree with a commit: time of a step, and its exact counters."""
