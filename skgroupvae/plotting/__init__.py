"""Plots of grouped data, translations, fits and predictions, in the style of scikit-learn's displays.

Each display has class methods that compute and draw (`from_estimator`, and in most cases `from_predictions`),
keeps its numbers as plain attributes, and can `plot` them again; `ax_` and `figure_` hold what it last drew
on. The statistics themselves are in :mod:`skgroupvae.diagnostics`. Needs matplotlib (extra ``plot``).
"""

from skgroupvae.plotting.calibration import PITDisplay
from skgroupvae.plotting.checks import PredictiveCheckDisplay
from skgroupvae.plotting.coverage import CoverageDisplay
from skgroupvae.plotting.densities import plot_group_densities
from skgroupvae.plotting.effects import GroupEffectsDisplay
from skgroupvae.plotting.history import HistoryDisplay, plot_history
from skgroupvae.plotting.latent import LatentMapDisplay
from skgroupvae.plotting.shrinkage import ShrinkageDisplay
from skgroupvae.plotting.translation import TranslationDisplay, plot_translation

__all__ = [
    "CoverageDisplay",
    "GroupEffectsDisplay",
    "HistoryDisplay",
    "LatentMapDisplay",
    "PITDisplay",
    "PredictiveCheckDisplay",
    "ShrinkageDisplay",
    "TranslationDisplay",
    "plot_group_densities",
    "plot_history",
    "plot_translation",
]
