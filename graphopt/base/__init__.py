"""What everything stands on: errors, units, records on disk, the cache folder. No torch."""
