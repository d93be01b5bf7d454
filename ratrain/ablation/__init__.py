"""Many variants, compared fairly: the plan, the pool of processes that runs it, what came of it."""
