from .op import fp8_linear, product, quantise

__all__ = ["fp8_linear", "product", "quantise"]
