from .op import ra_attention

__all__ = ["ra_attention"]
