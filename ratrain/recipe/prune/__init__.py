"""Weight pruning: the schedule, the share of each matrix, the scores, and the masks."""
