"""Language models: building, training, sampling, and predictions on real text."""
