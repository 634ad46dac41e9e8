"""Back ends: where models run."""
