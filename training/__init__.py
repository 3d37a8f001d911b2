"""Training, evaluation and the synthetic data for both; nothing in here is needed for inference."""
