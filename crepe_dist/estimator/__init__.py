"""Training and prediction as an estimator of scikit-learn; scikit-learn is imported here only."""

from crepe_dist import extras

extras.require("sklearn", "CrepeClassifier")
