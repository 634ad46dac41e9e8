"""Methods in which a second, smaller model generates ahead."""
