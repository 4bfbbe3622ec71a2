"""The optimizer that a step runs: what it holds, keeps and sums up, and how it updates."""
