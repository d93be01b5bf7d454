"""Reads manifest files into one frozen `Manifest`, without importing torch."""
