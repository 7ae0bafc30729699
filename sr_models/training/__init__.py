"""The training loop, its averaged weights and its checkpoints."""
