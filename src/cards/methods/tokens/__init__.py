"""Methods that choose every token themselves."""
