"""Releases on a Hugging Face hub: publishing them, and fetching them by their tags."""
