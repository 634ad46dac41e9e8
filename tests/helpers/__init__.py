"""Models, servers, reference implementations and other helpers that several tests share."""
