"""Calls of the compiled CPU kernels that quantize."""

from __future__ import annotations
