"""llama.cpp in this process: GGUF files on the CPU, on Metal or on a GPU."""
