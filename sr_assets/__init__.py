"""The Dagster side: the graph, its stores, its freshness and the `srd` command."""

import sr_models  # noqa: F401  # before torch, for what it tells torch about Apple's MPS
