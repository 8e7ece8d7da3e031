"""Parts that all networks share: configuration, weight files, loss, precision, calibration and inference."""
