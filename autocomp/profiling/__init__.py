"""Predicting latency: an ONNX model as the operations an engine runs, and what they cost on a device."""
