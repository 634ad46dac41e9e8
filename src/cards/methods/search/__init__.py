"""Methods that search over incomplete responses."""
