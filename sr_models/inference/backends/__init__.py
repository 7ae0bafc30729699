"""What can run a network: torch in several ways, ONNX Runtime and OpenVINO."""
