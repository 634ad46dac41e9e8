"""Methods that choose among complete responses."""
