"""Methods that accept or reject segments."""
