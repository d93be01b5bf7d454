"""The training loop of one manifest: set-up, train step, windows, evaluation."""
