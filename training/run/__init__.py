"""A training run: schedule, optimizer, averaged weights, checkpoints, batches, and what it starts from."""
