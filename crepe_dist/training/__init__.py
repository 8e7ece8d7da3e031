"""Training: the job, the training loop and its callbacks, evaluation, resuming, pseudo labels and refit."""
