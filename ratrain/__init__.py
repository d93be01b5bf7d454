"""ratrain: an honest trainer for GPT-2-class attention research.

This file imports nothing, so that `import ratrain.kernels` costs only torch.
"""

__version__ = "0.1.0"
