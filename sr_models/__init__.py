"""Networks and numerics on torch tensors; knows nothing of Dagster, recipes or folder layouts."""
