"""Doors to other tools: graphs for networkx, GraphML and Graphviz; ONNX files."""
