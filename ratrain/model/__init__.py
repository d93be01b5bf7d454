"""The base model, how patches are built into it, what it costs, and how text is drawn from it."""
