"""The report of a ladder."""
