"""Digests, code versions, the stale plan."""
