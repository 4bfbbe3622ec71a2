"""Values that are moved out of the device's memory while nothing reads them, and fetched back."""
