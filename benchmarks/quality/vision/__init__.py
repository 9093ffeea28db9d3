"""The vision domain: a small ViT on scikit-learn's digits and on images made from them.

`images` makes the tasks and `vit` is the domain.
"""

from benchmarks.quality.vision.vit import VisionDomain

__all__ = ["VisionDomain"]
