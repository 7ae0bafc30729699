"""The leaderboard's HTML page and its plots."""
