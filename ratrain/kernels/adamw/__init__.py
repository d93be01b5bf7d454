from .op import AdamW, Moved, serves

__all__ = ["AdamW", "Moved", "serves"]
