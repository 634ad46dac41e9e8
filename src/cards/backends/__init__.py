"""Back ends that run models: in this process, in vLLM, or on a server."""
