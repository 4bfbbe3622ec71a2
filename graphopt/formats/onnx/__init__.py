"""ONNX files: in as a module that trains, out with the plan on every node."""
