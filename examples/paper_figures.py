"""Figures 2 to 5 of the CxVAE paper, drawn by ``paper_tables.py --figures DIR``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from paper_experiment import PROTOCOLS, TABLE_1, draw_data, in_parallel, make_model
from sklearn.utils import Bunch

from skgroupvae.datasets import make_exam_scores
from skgroupvae.plotting import plot_group_densities, plot_history, plot_translation

_XLABEL = "score / points"
_FIGURE_4_MODELS = ("CxVAE", "ML-VAE")
Translation = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def draw_figures(
    folder: Path, protocol: str, seeds: range, n_groups: int, options: dict, n_jobs: int
) -> list[Path]:
    """Fit the published models with held-out groups, draw all figures, and return their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (_run_curve, (protocol, name, choices, seed, n_groups, options))
        for seed in seeds
        for name, choices in TABLE_1.items()
    ]
    histories: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLE_1}
    translations: dict[str, Translation] = {}
    for name, seed, history, translation in in_parallel(tasks, n_jobs):
        histories[name].append(history)
        if seed == seeds[0]:
            translations[name] = translation
    figures = {
        "figure_2": _figure_2(PROTOCOLS[protocol].data_noise),
        "figure_3": _figure_translations({"CxVAE": translations["CxVAE"]}),
        "figure_4": _figure_translations({name: translations[name] for name in _FIGURE_4_MODELS}),
        "figure_5": _figure_5(histories),
    }
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=150)
        plt.close(figure)
    return files


def _run_curve(
    protocol_name: str, name: str, choices: Mapping[str, Any], seed: int, n_groups: int, options: dict
) -> tuple[str, int, pd.DataFrame, Translation]:
    """Held-out loss of one fit by epoch, and one translation by it.

    These are not the fits of the tables, which neither hold out groups nor choose an epoch.
    """
    protocol = PROTOCOLS[protocol_name]
    train, test, _ = draw_data(protocol, seed, n_groups)
    options = options | {"early_stopping": True, "n_iter_no_change": 10**6}
    model = make_model(protocol, choices, seed, **options).fit(train.X, groups=train.groups)
    history = model.history_
    # Minus the ELBO, without the regularizer's term, so that models with and without one can be compared.
    history["held_out_loss"] = history.validation_loss - (
        model.regularizer_weight * history.validation_mutual_information
    )

    # From a group with a low mean and spread to one with a high mean and spread, where a wrong u shows.
    source = _nearest_group(test, -1.0, 0.3)
    target = _nearest_group(test, 1.0, 1.2)
    rows, wanted = test.X[test.groups == source], test.X[test.groups == target]
    context = (wanted, np.full(len(wanted), "target"))
    moved = model.translate(rows, "source", "target", context=context)
    return name, seed, history, (rows, wanted, moved)


def _nearest_group(data: Bunch, mu: float, abs_sigma: float) -> int:
    return int(np.argmin((data.mu - mu) ** 2 + (np.abs(data.sigma) - abs_sigma) ** 2))


def _figure_2(noise: float) -> Any:
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    data = make_exam_scores(5, noise=noise, random_state=3)
    plot_group_densities(data.X, data.groups, ax=ax, xlabel=_XLABEL)
    ax.set_title("Figure 2: scores of students by school")
    return figure


def _figure_translations(translations: Mapping[str, Translation]) -> Any:
    """Figure 3 with one model, Figure 4 with two."""
    n_rows = len(translations)
    figure, axes = plt.subplots(
        n_rows, figsize=(6.4, 3.6 * n_rows), sharex=True, squeeze=False, layout="constrained"
    )
    for ax, (name, parts) in zip(axes[:, 0], translations.items(), strict=True):
        plot_translation(*parts, ax=ax, xlabel=_XLABEL)
        ax.set_title(f"Figure {2 + n_rows}: translation by {name}")
    return figure


def _figure_5(histories: Mapping[str, list[pd.DataFrame]]) -> Any:
    figure, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    plot_history(histories, column="held_out_loss", ax=ax)
    # The first epochs have far larger losses, and would flatten the curves.
    runs = [history.held_out_loss for of_model in histories.values() for history in of_model]
    later = np.concatenate([loss.iloc[len(loss) // 10 :] for loss in runs])
    low, high = later.min(), later.max()
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_title("Figure 5: median, minimum and maximum over seeds")
    return figure
