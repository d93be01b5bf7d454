"""The commands check, check runs, smoke, verify, coordcheck and audit: what a model is, before it is trained."""
