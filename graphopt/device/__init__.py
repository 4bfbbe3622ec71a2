"""The machine: its allocators, storages, clocks and processes."""
