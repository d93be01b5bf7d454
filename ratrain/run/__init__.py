"""Operations on whole runs: start, resume, rehearse, replay, calibrate, sample from and export them."""
