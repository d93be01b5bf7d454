"""Where the time and the bytes of a train step go, against the roofline of this machine."""
