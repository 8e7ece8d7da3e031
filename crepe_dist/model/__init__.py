"""Parts that networks share: shapes, parameter files, objective, precision, calibration and inference."""
