from .op import best, decode_kept, keep, pruned_attention

__all__ = ["best", "decode_kept", "keep", "pruned_attention"]
