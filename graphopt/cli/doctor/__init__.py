"""`graphopt doctor`: what graphopt finds on this machine, and what is wrong with it."""
