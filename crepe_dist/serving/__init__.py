"""HTTP service for a trained checkpoint."""
