"""A fitted estimator and one file: its data only, so that reading it runs no code."""
