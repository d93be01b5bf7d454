"""Devices, processes and compiled code: everything that depends on the machine that a run is on."""
