"""The contracts that any decoder should keep, on anybody's: build it, call it, look at every claim."""
