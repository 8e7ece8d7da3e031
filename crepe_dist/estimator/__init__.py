"""Training and prediction as a scikit-learn estimator. Only this package imports scikit-learn."""

from crepe_dist import extras

extras.require("sklearn", "CrepeClassifier")
