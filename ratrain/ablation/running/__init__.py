"""The execution of a study: its runs in processes, what follows a look, progress, and the cost of a step."""
