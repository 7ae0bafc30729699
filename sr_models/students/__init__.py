"""Fast networks that people deploy, a file a family; each needs torch alone."""
