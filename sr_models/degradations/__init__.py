"""How LR is made from HR."""
