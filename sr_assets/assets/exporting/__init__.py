"""The files of an export: one module makes each kind, all are measured beside the network."""
