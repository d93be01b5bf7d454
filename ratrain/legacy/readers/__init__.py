"""Reads configurations and command lines of the reference and converts them to manifests."""
