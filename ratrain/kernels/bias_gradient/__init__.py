from .op import biased_gelu, fuses, split_heads

__all__ = ["biased_gelu", "fuses", "split_heads"]
