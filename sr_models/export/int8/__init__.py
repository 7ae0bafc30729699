"""Int8 files of fp32 graphs: calibrated or trained ranges, QDQ nodes, and the gate they pass."""

from sr_models.export.int8.post_training import Int8Error, Int8Report, export_int8

__all__ = ["Int8Error", "Int8Report", "export_int8"]
