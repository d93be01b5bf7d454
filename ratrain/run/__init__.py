"""Work on whole runs: start, resume, rehearse, replay, list, sample from and export them."""
