"""What computes an update: optimizers, parameters, and gradients in fixed-point numbers."""
