"""Methods in which a second model writes ahead."""
