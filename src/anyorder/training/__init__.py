"""Training: recipes, data, the loop; objectives are found by name, like methods."""
