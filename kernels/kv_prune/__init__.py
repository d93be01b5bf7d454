from .op import keep, pruned_attention

__all__ = ["keep", "pruned_attention"]
