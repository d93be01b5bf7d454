"""The commands check, check runs, smoke, verify and audit: what a manifest or a model is, before it is trained."""
