"""Mechanisms, one a file: the folder listing is the catalogue, and a kind is its file's name."""
