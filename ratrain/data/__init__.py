"""Data: text files and named sets become shards of tokens; shards become batches and validation windows."""
