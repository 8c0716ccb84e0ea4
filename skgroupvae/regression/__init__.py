"""The model of a regression, apart from tables and scikit-learn: plain torch."""
