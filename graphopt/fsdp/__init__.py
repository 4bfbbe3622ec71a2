"""The door to FSDP2: blocks that are sharded each for itself, with one budget for all of them."""
