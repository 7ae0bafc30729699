"""Where source images come from: one module a kind of source, `finding.py` in front of them."""
