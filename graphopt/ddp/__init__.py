"""The door to DistributedDataParallel: communication hooks."""
