from .op import decode_kept, keep, pruned_attention

__all__ = ["decode_kept", "keep", "pruned_attention"]
