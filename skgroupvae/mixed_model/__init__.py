"""Mixed models by exact maximum likelihood: where every regression starts."""
