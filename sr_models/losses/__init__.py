"""Loss terms between a network's output and its target, by the names of the recipe."""
