"""Value vectors in fewer channels: principal planes and splines, for KV splice."""
