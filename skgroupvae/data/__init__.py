"""Tables in and out: labels, outcomes, covariates and formulas as numbers, and results as tables again."""
