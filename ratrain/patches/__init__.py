"""Mechanisms, one per file: the folder listing is the catalogue, and a patch's kind is its file name."""
