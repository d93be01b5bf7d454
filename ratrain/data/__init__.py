"""Tokens: text files and named sets become shards, and shards become batches and validation windows."""
