"""scikit-learn-compatible estimators for grouped data: group codes, instance codes, translation."""

from skgroupvae.building import PUBLISHED_MODELS
from skgroupvae.estimators import GroupVAE

__all__ = ["PUBLISHED_MODELS", "GroupVAE", "__version__"]
__version__ = "0.1.0"
