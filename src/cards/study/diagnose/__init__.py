"""Is this reward fit for segments? Measured on answers of the LM and on preference pairs, with a verdict in words."""
