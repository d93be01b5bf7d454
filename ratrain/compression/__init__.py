"""Compression of value vectors to fewer channels by principal planes and splines, for KV splice."""
