"""One of Dynamo's graphs: met, planned, compiled, and what its backward adds to."""
