"""Training: the recipe, its steps, and how a run is set up, resumed and scored."""
