"""The planners' inner loops as machine code, compiled once where there is a compiler; the same schedules either way.

Each stands beside its Python, which is what it is checked against, and what runs where it cannot be compiled.
"""

from graphopt.planners.native.build import without_native
from graphopt.planners.native.calls import Native, native_for

__all__ = ["Native", "native_for", "without_native"]
