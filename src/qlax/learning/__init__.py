"""What the algorithms are assembled from: returns, gradients, mixing, heads, and what both algorithms share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["heads"])
