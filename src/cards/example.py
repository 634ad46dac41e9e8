"""The first example of `make demo`, the README and the playground. `benchmarks/demo_prompt.py` chose it by a rule."""

PROMPT = "My team lost again and I feel terrible. Cheer me up."
RIVAL = "best-of-n:n=11"  # best-of-n that spends the compute of CARDS on this prompt, with the default settings
