"""The statistics of studies as pure functions of losses: no files, no processes."""
