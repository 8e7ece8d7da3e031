"""Files of a run: checkpoints, scores, metrics, saved states and the result."""
