"""Benches of pytest: the cost of variants, operations, decoding, the engine, optimizers, other trainers."""
