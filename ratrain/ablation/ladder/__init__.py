"""Ladders: the same arms at several scales, and the trend of their effects."""
