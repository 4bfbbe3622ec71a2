"""Doors to other tools: graphs for networkx, GraphML and Graphviz."""
