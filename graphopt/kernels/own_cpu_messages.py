"""Calls of the compiled CPU kernels around a message."""

from __future__ import annotations
