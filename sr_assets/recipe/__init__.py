"""The recipe: one YAML file that describes one project."""
