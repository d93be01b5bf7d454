"""Manifest files become one frozen `Manifest`. Nothing here imports torch."""
