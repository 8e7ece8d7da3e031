"""Reports on data sets, runs and predictions, as self-contained HTML pages and in the terminal."""
