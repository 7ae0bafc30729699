"""The stages of the graph, one module each, in the order the data flows."""
