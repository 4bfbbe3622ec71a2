"""Pass: parameters are this rank's rows, gathered where they are read, and their gradients are scattered."""
