"""A schedule as GraphModules that run in exactly its order."""
