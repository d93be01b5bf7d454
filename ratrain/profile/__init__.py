"""Profiles the time and the bytes of a train step, against the roofline of this machine."""
