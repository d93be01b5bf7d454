from .op import Kept, best, decode_kept, keep, pruned_attention

__all__ = ["Kept", "best", "decode_kept", "keep", "pruned_attention"]
