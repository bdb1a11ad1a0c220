"""Free-energy differences from samples, each with its standard error."""
