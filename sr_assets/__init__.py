"""The Dagster side: the graph, its stores, its freshness and the `srd` command."""
