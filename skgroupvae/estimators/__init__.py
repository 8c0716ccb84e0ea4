"""The estimators: the only files that know scikit-learn's conventions."""

from skgroupvae.estimators.group_vae import GroupVAE

__all__ = ["GroupVAE"]
