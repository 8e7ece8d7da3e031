"""Classification of texts with a trained checkpoint."""
