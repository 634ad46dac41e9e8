"""Models on HTTP servers."""
