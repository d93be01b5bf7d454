"""Fair comparison of many variants: the plan, the pool of processes that runs it, the results."""
