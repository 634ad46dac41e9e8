"""Methods that choose among whole responses."""
