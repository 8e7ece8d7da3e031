"""Training and prediction as an estimator of scikit-learn; scikit-learn is imported here only."""
