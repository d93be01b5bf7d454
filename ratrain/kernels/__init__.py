"""Operations with a definition in plain PyTorch and, if it is faster, a Triton kernel.

Imports nothing, so that the kernels can be checked on a machine that has only torch and triton.
"""

if not __name__.startswith("ratrain."):
    raise ImportError("this package is imported as ratrain.kernels; the name 'kernels' belongs to another project")
