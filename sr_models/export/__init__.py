"""Weight files and ONNX graphs of trained networks."""
