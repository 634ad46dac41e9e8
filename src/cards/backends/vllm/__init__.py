"""Models in vLLM, which runs in separate processes."""
