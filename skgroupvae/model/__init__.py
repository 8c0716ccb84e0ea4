"""The model and its inference, in plain torch: no data frames, no scikit-learn."""
