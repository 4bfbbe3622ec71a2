"""Updates whose optimizer state lies elsewhere: in a file, or in host memory."""
