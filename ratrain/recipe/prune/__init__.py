"""Weight pruning: when, how many of each matrix, what says who stays, and the masks."""
