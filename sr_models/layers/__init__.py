"""Blocks that two or more networks share; each file needs torch alone."""
