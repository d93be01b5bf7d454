"""Devices, processes and compiled code: all code that depends on the machine of a run."""
