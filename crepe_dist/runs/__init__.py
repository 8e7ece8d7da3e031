"""What a run leaves in its folder: checkpoints, scores, metrics, saved states, result; written and read here."""
