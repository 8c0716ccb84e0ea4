"""The cases of the golden master: fits on small tables, asked through the public interface only.

What the rebuild changes in that interface is spelled once, in the helpers at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from tables import grades, table

from skgroupvae import CxVAERegressor, GroupVAE

__all__ = ["CASES", "EXACT", "TRAINED", "compute"]

# --- What the rebuild changes: only these helpers are to be edited with it.


def group_vae(*args: Any, **params: Any) -> GroupVAE:
    short = {"max_epochs": 3, "batch_size": 8, "n_importance_samples": 20, "random_state": 0}
    if not args:
        short["n_group_codes"] = 2
    return GroupVAE(*args, **short | {"decoder": "mlp", "verbose": False} | params)


def network_regressor(family: str = "gaussian", **params: Any) -> CxVAERegressor:
    """A regressor with a network."""
    short = {"max_epochs": 3, "batch_size": 8, "random_state": 0}
    return CxVAERegressor(family, **short | {"decoder": "mlp", "verbose": False} | params)


def linear_regressor(family: str = "gaussian", **params: Any) -> CxVAERegressor:
    """The (generalized) linear mixed model alone."""
    return network_regressor(family, **{"decoder": "linear"} | params)


def translate_outcomes(model: CxVAERegressor, X: Any, y: Any, source: Any, target: Any, **more: Any) -> Any:
    """Translation by a regressor; y or source is None where X holds it."""
    return model.translate(X, y, source_group=source, target_group=target, **more)


def translate_rows(model: GroupVAE, X: Any, source: Any, target: Any, context: Any = None) -> Any:
    return model.translate(X, source, target, context=context)


def known_by(context: Any) -> Any:
    """What the recorded figures call None is "prior" today, and what they call "fit" is None."""
    return {None: "prior", "fit": None}.get(context, context) if not isinstance(context, tuple) else context


def row_scores(model: GroupVAE, X: Any, groups: Any, context: Any = None) -> np.ndarray:
    """Each row's share of the joint log-likelihood of its group."""
    joint = model.group_log_likelihood(X, groups=groups, context=known_by(context))
    labels = pd.Series(labels_of(model, X, groups))
    return joint[labels].to_numpy() / labels.map(labels.value_counts()).to_numpy()


def labels_of(model: GroupVAE, X: Any, groups: Any) -> list[Any]:
    column = model.group_column
    if column is None:
        return list(groups)
    return (
        list(zip(*(X[name] for name in column), strict=True)) if isinstance(column, list) else list(X[column])
    )


def mean_score(model: GroupVAE, X: Any, groups: Any, context: Any = None, **more: Any) -> float:
    return model.score(X, groups=groups, context=known_by(context), **more)


# --- Figures

# Entries kept of a long array, at fixed places; its mean and root mean square stand for the rest.
_N_KEPT = 18

Figures = dict[str, np.ndarray]


class Recorder:
    """Figures of one case, by name."""

    def __init__(self) -> None:
        self.figures: Figures = {}

    def put(self, name: str, value: Any) -> None:
        if isinstance(value, pd.DataFrame):
            for column in value.columns:
                self.put(f"{name}[{column}]", value[column])
            return
        if isinstance(value, tuple) and not np.isscalar(value[0]):
            for position, part in enumerate(value):
                self.put(f"{name}.{position}", part)
            return
        if name in self.figures:
            raise ValueError(f"two figures are called {name!r}")
        self.figures[name] = shortened(value)


def shortened(value: Any) -> np.ndarray:
    """A flat float array of at most 20 numbers."""
    flat = np.asarray(value, dtype=np.float64).ravel()
    if len(flat) <= _N_KEPT + 2:
        return flat
    kept = flat[np.linspace(0, len(flat) - 1, _N_KEPT).round().astype(int)]
    return np.array([*kept, flat.mean(), np.sqrt(np.mean(flat**2))])


def put_vae(
    record: Recorder, model: GroupVAE, X: Any, groups: Any, prefix: str = "", context: Any = None
) -> None:
    """What every fitted GroupVAE is asked, of rows X; `groups` is None where X holds them."""
    codes = model.transform(X, groups=groups, return_std=True)
    record.put(prefix + "transform", codes)
    record.put(prefix + "reconstruct", numbers(model, model.reconstruct(X, groups=groups)))
    decoded = model.inverse_transform(*(codes[:1] if model.stack_codes else codes[:2]))
    record.put(prefix + "inverse_transform", decoded)
    record.put(prefix + "sample_codes", model.sample_codes(X, groups=groups, random_state=1))
    record.put(prefix + "sample", model.sample(3, 4, random_state=2)[0])
    labels = list(model.group_codes_.index)
    known = model.sample(group_size=2, groups=labels[:3], random_state=3)[0]
    record.put(prefix + "sample_of_known_groups", known)
    record.put(prefix + "score_samples", row_scores(model, X, groups, context))
    record.put(prefix + "score", mean_score(model, X, groups, context))
    put_attributes(record, model, ["group_codes_", "group_codes_std_", "noise_scale_", "n_iter_"], prefix)


def numbers(model: GroupVAE, result: Any) -> Any:
    """A table that came back with its column of labels, without it."""
    if model.group_column is None:
        return result
    return result.drop(columns=model.group_column)


def put_attributes(record: Recorder, model: Any, names: list[str], prefix: str = "") -> None:
    for name in names:
        value = getattr(model, name)
        # A tuple of two plain numbers is one figure.
        record.put(prefix + name, list(value) if isinstance(value, tuple) else value)
    if len(model.history_):
        last = model.history_.iloc[-1]
        for column in last.index:
            record.put(f"{prefix}history_.last[{column}]", last[column])


MIXED_MODEL = [
    "fixed_effects_",
    "variance_components_",
    "random_effects_covariance_",
    "intraclass_correlation_",
    "intraclass_correlation_interval_",
    "mixed_model_log_likelihood_",
    "marginal_effects_",
    "group_effects_",
    "group_codes_",
    "new_group_codes_",
    "n_iter_",
    "is_mixed_model_",
]


def put_regressor(
    record: Recorder,
    model: CxVAERegressor,
    X: Any,
    y: Any,
    groups: Any,
    prefix: str = "",
    target: Any = None,
    trials: Any = None,
) -> None:
    """What every fitted regressor is asked; y and groups are None where X holds them."""
    asked = {} if trials is None else {"trials": trials}
    record.put(prefix + "predict", model.predict(X, groups=groups, return_std=True, **asked))
    record.put(
        prefix + "predict_quantiles", model.predict_quantiles(X, [0.1, 0.5, 0.9], groups=groups, **asked)
    )
    record.put(prefix + "score_samples", model.score_samples(X, y, groups=groups))
    record.put(prefix + "score", model.score(X, y, groups=groups))
    record.put(prefix + "pit", model.pit(X, y, groups=groups))
    record.put(prefix + "sample_y", model.sample_y(X, 2, groups=groups, random_state=4, **asked))
    record.put(prefix + "transform", model.transform(X, y, groups=groups))
    if target is not None:
        moved = translate_outcomes(model, X, y, groups, target, quantiles=[0.25, 0.75])
        record.put(prefix + "translate", moved)
    put_attributes(record, model, MIXED_MODEL, prefix)


def new_labels(labels: Any) -> np.ndarray:
    """Labels of groups that no fit has seen."""
    return np.array([f"new {label}" for label in labels], dtype=object)


# --- Cases

# What hangs on rounding is no figure to keep: no variance here has its maximum at 0, and no two groups have
# the same total of standardized values, by which groups are ordered for training.
# Nothing but linear algebra and maximum likelihood, against a network that was trained.
EXACT, TRAINED = "exact", "trained"
CASES: dict[str, tuple[str, Callable[[Recorder], None]]] = {}


def case(kind: str) -> Callable[[Callable[[Recorder], None]], Callable[[Recorder], None]]:
    def register(function: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
        CASES[function.__name__] = (kind, function)
        return function

    return register


def compute(name: str) -> Figures:
    """Figures of a case, on one thread: the order of additions is part of them."""
    record, n_threads = Recorder(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        CASES[name][1](record)
    finally:
        torch.set_num_threads(n_threads)
    return record.figures


# GroupVAE


@case(TRAINED)
def vae_default(record: Recorder) -> None:
    data = table("exam_scores")
    X, groups = data[["score"]].to_numpy(), data["school"].to_numpy()
    old = groups < 18
    model = group_vae().fit(X[old], groups=groups[old])
    put_vae(record, model, X[old], groups[old])
    some, source = X[old][:12], groups[old][:12]
    record.put("translate", translate_rows(model, some, source, np.resize([3, 5, 7], 12)))
    record.put("translate_new_source", translate_rows(model, X[~old][:9], groups[~old][:9], 4))
    context = (X[~old], groups[~old])
    record.put("translate_context", translate_rows(model, some, 0, 20, context))
    record.put("score_context_fit", mean_score(model, X[old], groups[old], "fit"))
    record.put("score_samples_context_fit", row_scores(model, some, source, "fit"))
    record.put("score_samples_context", row_scores(model, X[~old][::2], groups[~old][::2], context))
    weights = np.linspace(0.5, 2.0, len(some))
    record.put("score_weighted", mean_score(model, some, source, sample_weight=weights))
    record.put("score_new_groups", mean_score(model, *context))


@case(TRAINED)
def vae_two_columns(record: Recorder) -> None:
    data = table("orthodont")
    model = group_vae(n_group_codes=1, n_instance_codes=2, regularizer="instance", hidden_sizes=(16,))
    model.fit(data[["distance", "age"]], groups=data["Subject"])
    put_vae(record, model, data[["distance", "age"]], data["Subject"])
    moved = translate_rows(model, data[["distance", "age"]][:8], data["Subject"][:8], "F01")
    record.put("translate", moved)


@case(TRAINED)
def vae_bouchacourt(record: Recorder) -> None:
    data = table("hsb82")
    model = group_vae(group_encoder="product", instance_encoder="unconditional", regularizer=None)
    model.fit(data[["mAch", "ses"]], groups=data["school"])
    put_vae(record, model, data[["mAch", "ses"]], data["school"])


@case(TRAINED)
def vae_hosoya(record: Recorder) -> None:
    data = table("exam")
    model = group_vae(group_encoder="average", instance_encoder="conditional_network", regularizer=None)
    model.fit(data[["normexam", "standLRT"]], groups=data["school"])
    put_vae(record, model, data[["normexam", "standLRT"]], data["school"])


@case(TRAINED)
def vae_product_with_prior(record: Recorder) -> None:
    data = table("oxboys")
    model = group_vae(
        3, group_encoder="product_with_prior", regularizer_weight=0.3, n_decoder_samples=1, max_epochs=2
    )
    model.fit(data[["height", "age"]], groups=data["Subject"])
    put_vae(record, model, data[["height", "age"]], data["Subject"])


@case(TRAINED)
def vae_linear(record: Recorder) -> None:
    data = table("sleepstudy")
    X, groups = data[["Reaction", "Days"]], data["Subject"]
    model = group_vae(1, decoder="linear").fit(X, groups=groups)
    put_vae(record, model, X, groups)
    record.put("translate", translate_rows(model, X[:10], 308, 372))


def location_and_spread(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The formula that the exam scores are simulated by."""
    return 2.0 * u[:, :1] + (u[:, 1:] ** 2 + 1.0) * v


@case(TRAINED)
def vae_formula_decoder(record: Recorder) -> None:
    data = table("exam_scores")
    model = group_vae(decoder=location_and_spread, n_instance_codes=1, noise_scale=1.0)
    model.fit(data[["score"]], groups=data["school"])
    put_vae(record, model, data[["score"]], data["school"])


@case(TRAINED)
def vae_early_stopping(record: Recorder) -> None:
    data = table("exam_scores")
    model = group_vae(
        early_stopping=True, validation_fraction=0.25, n_iter_no_change=1, tol=0.0, max_epochs=4
    )
    model.fit(data[["score"]], groups=data["school"])
    put_vae(record, model, data[["score"]], data["school"])
    # No epoch improves by so much, so this one stops early.
    model.set_params(tol=10.0).fit(data[["score"]], groups=data["school"])
    put_vae(record, model, data[["score"]], data["school"], "stopped.")


@case(TRAINED)
def vae_group_column(record: Recorder) -> None:
    data = table("hsb82")[["mAch", "ses", "school"]]
    model = group_vae(group_column="school", noise_scale=[4.0, 0.5]).fit(data)
    put_vae(record, model, data, None)
    moved = translate_rows(model, data[:6], None, data["school"].iloc[-1])
    record.put("translate", numbers(model, moved))


@case(TRAINED)
def vae_group_columns_stacked(record: Recorder) -> None:
    data = table("hsb82")[["mAch", "cses", "school", "sx"]]
    model = group_vae(group_column=["school", "sx"], stack_codes=True, max_epochs=2).fit(data)
    put_vae(record, model, data, None)
    moved = translate_rows(model, data[:6], None, (data["school"].iloc[-1], "Female"))
    record.put("translate", numbers(model, moved))


@case(TRAINED)
def vae_incremental(record: Recorder) -> None:
    data = table("exam_scores")
    X, groups = data[["score"]], data["school"]
    parts = [groups < 12, (groups >= 9) & (groups < 18), groups >= 16]
    # No row comes twice.
    parts[1] &= ~parts[0]
    parts[2] &= ~parts[1]
    model = group_vae(max_epochs=2).partial_fit(X[parts[0]], groups=groups[parts[0]])
    model.partial_fit(X[parts[1]], groups=groups[parts[1]])
    put_vae(record, model, X[parts[1]], groups[parts[1]], "partial_fit.")
    model.update_groups(X[parts[2]], groups=groups[parts[2]])
    put_vae(record, model, X[parts[2]], groups[parts[2]], "update_groups.")
    record.put("translate", translate_rows(model, X[:6], 0, 22))
    warm = group_vae(max_epochs=2, warm_start=True).fit(X[parts[0]], groups=groups[parts[0]])
    warm.fit(X[parts[1]], groups=groups[parts[1]])
    put_vae(record, warm, X[parts[1]], groups[parts[1]], "warm_start.")


# Regressors: linear mixed models


@case(EXACT)
def linear_sleepstudy(record: Recorder) -> None:
    data = table("sleepstudy")
    X, y, groups = data[["Days"]], data["Reaction"], data["Subject"]
    model = linear_regressor().fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=np.resize([308, 335, 372], len(X)))
    record.put("predict_prior", model.predict(X[:10], return_std=True))
    some = X[:10], y[:10], new_labels(groups[:10])
    record.put("predict_context", model.predict(X[:10], groups=some[2], context=some, return_std=True))
    quantiles = model.predict_quantiles(X[:10], [0.5], groups=some[2], context=some)
    record.put("predict_quantiles_context", quantiles)
    record.put("score_samples_context", model.score_samples(*some[:2], groups=some[2], context=some))
    record.put("pit_context", model.pit(*some[:2], groups=some[2], context=some))
    moved = translate_outcomes(model, X[10:15], y[10:15], 309, some[2][0], context=some)
    record.put("translate_context", moved)


@case(EXACT)
def linear_formula(record: Recorder) -> None:
    data = table("orthodont")
    model = linear_regressor(formula="distance ~ age * Sex + (1 + age | Subject)").fit(data)
    put_regressor(record, model, data, None, None, target="F02")
    model = linear_regressor(formula="distance ~ age + Sex", random_slopes=["age"])
    model.fit(data, groups=data["Subject"])
    put_regressor(record, model, data, None, data["Subject"], "no_random_part.")
    model = linear_regressor(formula="~ age + Sex", group_column="Subject", random_slopes=None)
    columns = data.drop(columns="distance")
    model.fit(columns, data["distance"])
    put_regressor(record, model, columns, data["distance"], None, "no_outcome.", target="M03")


@case(EXACT)
def linear_school_columns(record: Recorder) -> None:
    data = table("hsb82")
    X, y = data[["ses", "meanses", "sector", "minrty", "school"]], data["mAch"]
    weights = np.resize([1.0, 2.0, 0.5], len(X))
    model = linear_regressor(group_column="school", random_slopes=None, stack_codes=True)
    model.fit(X, y, sample_weight=weights)
    put_regressor(record, model, X, y, None, target=X["school"].iloc[-1])
    record.put("score_weighted", model.score(X, y, sample_weight=weights))


@case(EXACT)
def linear_arrays(record: Recorder) -> None:
    data = table("exam")
    X, y, groups = (data[c].to_numpy() for c in (["standLRT", "schavg"], "normexam", "school"))
    model = linear_regressor(random_slopes=[0], n_prediction_samples=32).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups)


@case(EXACT)
def linear_incremental(record: Recorder) -> None:
    data = table("oxboys")
    X, y, groups = data[["age"]], data["height"], data["Subject"]
    first, second = groups <= 14, (groups > 14) & (groups <= 20)
    third = groups > 20
    model = linear_regressor(warm_start=True).partial_fit(X[first], y[first], groups=groups[first])
    model.partial_fit(X[second], y[second], groups=groups[second])
    put_regressor(record, model, X[second], y[second], groups[second], "partial_fit.")
    model.update_groups(X[third], y[third], groups=groups[third])
    put_regressor(record, model, X[third], y[third], groups[third], "update_groups.", target=22)
    model.fit(X[third], y[third], groups=groups[third])
    put_regressor(record, model, X[third], y[third], groups[third], "warm_start.", target=22)


@case(EXACT)
def linear_two_outcomes(record: Recorder) -> None:
    data = table("hsb82")
    X, y, groups = data[["minrty", "sx"]], data[["mAch", "ses"]].copy(), data["school"]
    y.loc[y.index[::7], "mAch"] = np.nan
    model = linear_regressor(random_slopes=None).fit(X, y, groups=groups)
    known = y.notna().all(axis=1)
    put_several(record, model, X[known], y[known], groups[known], target=groups.iloc[0])
    record.put("predict_all", model.predict(X, groups=groups))


def put_several(record: Recorder, model: CxVAERegressor, X: Any, y: Any, groups: Any, target: Any) -> None:
    """What a fit to several outcomes is asked; its tables are indexed by outcome, then as ever."""
    record.put("predict", model.predict(X, groups=groups, return_std=True))
    record.put("predict_quantiles", model.predict_quantiles(X, [0.2, 0.8], groups=groups))
    record.put("score_samples", model.score_samples(X, y, groups=groups))
    record.put("score", model.score(X, y, groups=groups))
    record.put("pit", model.pit(X, y, groups=groups))
    record.put("sample_y", model.sample_y(X, 2, groups=groups, random_state=4))
    record.put("transform", model.transform(X, y, groups=groups))
    moved = translate_outcomes(model, X, y, groups, target, quantiles=[0.25, 0.75])
    record.put("translate", moved)
    for name in ("fixed_effects_", "variance_components_", "marginal_effects_", "group_effects_"):
        record.put(name, getattr(model, name))
    for name in ("intraclass_correlation_", "mixed_model_log_likelihood_"):
        record.put(name, getattr(model, name))


# Regressors: generalized linear mixed models, which are trained


@case(TRAINED)
def glmm_binomial(record: Recorder) -> None:
    data = table("cbpp")
    X, y, groups = data[["period"]].astype(str), data[["incidence", "healthy"]].to_numpy(), data["herd"]
    model = linear_regressor("binomial", random_slopes=None).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=3, trials=data["size"].to_numpy())


@case(TRAINED)
def glmm_poisson(record: Recorder) -> None:
    data = table("grouseticks")
    model = linear_regressor("poisson", formula="TICKS ~ cHEIGHT + C(YEAR) + (1 | BROOD)").fit(data)
    put_regressor(record, model, data, None, None, target=data["BROOD"].iloc[5])


@case(TRAINED)
def glmm_bernoulli(record: Recorder) -> None:
    data = table("exam")
    X, y, groups = data[["standLRT", "sex"]], (data["normexam"] > 0.0).astype(int), data["school"]
    model = linear_regressor("bernoulli", random_slopes=None, max_epochs=2).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=2)


@case(TRAINED)
def glmm_ordinal(record: Recorder) -> None:
    data = table("exam")
    X, y, groups = data[["standLRT", "sex"]], grades(data["normexam"]), data["school"]
    model = linear_regressor("ordinal", random_slopes=None, max_epochs=2).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=2)
    record.put("classes_", model.classes_)


@case(TRAINED)
def glmm_student_t(record: Recorder) -> None:
    data = table("sleepstudy")
    X, y, groups = data[["Days"]], data["Reaction"], data["Subject"]
    model = linear_regressor("student_t", max_epochs=2).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=372)


# Regressors: networks


@case(TRAINED)
def network_default(record: Recorder) -> None:
    data = table("sleepstudy")
    X, y, groups = data[["Days"]], data["Reaction"], data["Subject"]
    model = network_regressor().fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=np.resize([308, 335, 372], len(X)))
    record.put("predict_prior", model.predict(X[:10], return_std=True))
    some = X[:10], y[:10], new_labels(groups[:10])
    record.put("predict_context", model.predict(X[:10], groups=some[2], context=some, return_std=True))
    record.put("score_samples_context", model.score_samples(*some[:2], groups=some[2], context=some))
    record.put("pit_context", model.pit(*some[:2], groups=some[2], context=some))
    moved = translate_outcomes(model, X[10:15], y[10:15], 309, some[2][0], context=some)
    record.put("translate_context", moved)


@case(TRAINED)
def network_formula(record: Recorder) -> None:
    data = table("exam")
    model = network_regressor(formula="normexam ~ standLRT * sex + schavg + (1 + standLRT | school)")
    model.fit(data)
    put_regressor(record, model, data, None, None, target=data["school"].iloc[0])
    context = data[:20].assign(school="new")
    record.put("predict_context", model.predict(context, context=context, return_std=True))


@case(TRAINED)
def network_slopes_and_weights(record: Recorder) -> None:
    data = table("exam")
    X, y = data[["standLRT", "schavg", "sex", "school"]], data["normexam"]
    model = network_regressor(
        group_column="school", random_slopes=["standLRT"], n_extra_codes=2, hidden_sizes=(16,), max_epochs=2
    )
    model.fit(X, y, sample_weight=np.resize([1.0, 2.0, 0.5], len(X)))
    put_regressor(record, model, X, y, None, target=X["school"].iloc[-1])


@case(TRAINED)
def network_deepsets_context(record: Recorder) -> None:
    data = table("oxboys")
    X, y, groups = data[["age"]], data["height"], data["Subject"]
    model = network_regressor(group_encoder="deepsets", regularizer="context", stack_codes=True)
    model.fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=3)


@case(TRAINED)
def network_product_instance(record: Recorder) -> None:
    data = table("orthodont")
    X, y, groups = data[["age", "Sex"]], data["distance"], data["Subject"]
    model = network_regressor(
        group_encoder="product", regularizer="instance", regularizer_weight=0.5, random_slopes=None
    )
    model.fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target="F02")


@case(TRAINED)
def network_regularized(record: Recorder) -> None:
    data = table("grouseticks")
    X, y, groups = data[["cHEIGHT"]], data["TICKS"], data["LOCATION"]
    model = network_regressor("poisson", regularizer="context", max_epochs=2).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=groups.iloc[0])


@case(TRAINED)
def network_student_t(record: Recorder) -> None:
    data = table("hsb82")
    X, y, groups = data[["ses", "sx"]], data["mAch"], data["school"]
    model = network_regressor("student_t", random_slopes=None, max_epochs=2).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=groups.iloc[-1])


@case(TRAINED)
def network_bernoulli(record: Recorder) -> None:
    data = table("exam")
    X, y, groups = data[["standLRT", "sex"]], (data["normexam"] > 0.0).astype(int), data["school"]
    model = network_regressor("bernoulli", random_slopes=["standLRT"], max_epochs=2)
    model.fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=2)


@case(TRAINED)
def network_binomial(record: Recorder) -> None:
    data = table("cbpp")
    X, y, groups = data[["period"]], data[["incidence", "healthy"]].to_numpy(), data["herd"]
    model = network_regressor("binomial", random_slopes=None).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=3, trials=data["size"].to_numpy())
    context = X[:4], y[:4], new_labels(groups[:4])
    record.put("predict_context", model.predict(X[:4], groups=context[2], context=context))


@case(TRAINED)
def network_negative_binomial(record: Recorder) -> None:
    data = table("grouseticks")
    X, y, groups = data[["cHEIGHT", "YEAR"]], data["TICKS"], data["LOCATION"]
    model = network_regressor("negative_binomial", random_slopes=None).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=groups.iloc[0])


@case(TRAINED)
def network_ordinal(record: Recorder) -> None:
    data = table("hsb82")
    X, y, groups = data[["ses", "minrty"]], grades(data["mAch"]), data["school"]
    model = network_regressor("ordinal", random_slopes=None).fit(X, y, groups=groups)
    put_regressor(record, model, X, y, groups, target=groups.iloc[0])
    record.put("classes_", model.classes_)


@case(TRAINED)
def network_two_outcomes(record: Recorder) -> None:
    data = table("orthodont")
    y = pd.DataFrame({"distance": data["distance"], "ratio": data["distance"] / data["age"]})
    X, groups = data[["age", "Sex"]], data["Subject"]
    model = network_regressor(random_slopes=None, max_epochs=2).fit(X, y, groups=groups)
    put_several(record, model, X, y, groups, target="F02")


@case(TRAINED)
def network_incremental(record: Recorder) -> None:
    data = table("oxboys")
    X, y, groups = data[["age"]], data["height"], data["Subject"]
    first, second = groups <= 14, (groups > 14) & (groups <= 20)
    third = groups > 20
    model = network_regressor(max_epochs=2, warm_start=True)
    model.partial_fit(X[first], y[first], groups=groups[first])
    model.partial_fit(X[second], y[second], groups=groups[second])
    put_regressor(record, model, X[second], y[second], groups[second], "partial_fit.")
    model.update_groups(X[third], y[third], groups=groups[third])
    put_regressor(record, model, X[third], y[third], groups[third], "update_groups.", target=22)
    model.fit(X[second], y[second], groups=groups[second])
    put_regressor(record, model, X[second], y[second], groups[second], "warm_start.")
