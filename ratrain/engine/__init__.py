"""The loop that trains one manifest: set-up, the train step, windows, evaluation."""
