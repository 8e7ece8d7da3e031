"""Files of a run, written and read: checkpoints, scores, metrics, saved states, result."""
