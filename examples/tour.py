# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # CARDS in ten cells
#
# A language model (LM) proposes text, a reward model (RM) scores it, and a method decides which text is kept. This
# notebook uses the embedded models, so nothing is downloaded. Run it in an editor that reads the percent format, or
# convert it for Jupyter with `jupytext --to ipynb examples/tour.py`.
#
# ## 1. Decode a response
#
# `Decoder` takes an LM, a reward and a method. With `trace=True` the result keeps the rejected candidates. Click a
# segment to see them.

# %%
import cards

engine, reward = cards.load_engine("tiny"), cards.load_reward("tiny")
decoder = cards.Decoder(engine, reward, cards.CARDS(target=2.5))
prompt = [cards.Message(role="user", content="What is a good film to watch tonight?")]
result = decoder(prompt, max_tokens=56, seed=2, trace=True)
result

# %% [markdown]
# Blue segments passed the test. Orange segments are fallbacks: no candidate passed, so the best one was used.
#
# ## 2. Read the segments
#
# The fields of the result contain the same: reward, threshold, number of candidates, and text.

# %%
for segment in result.segments:
    print(f"{segment.reward:6.2f} {segment.threshold:6.2f} {segment.candidates:3} {segment.text!r}")

# %% [markdown]
# ## 3. Read the cost
#
# Every result has the exact cost of its request.

# %%
usage = result.usage
print(f"{len(result.token_ids)} tokens kept, {usage.lm_decoded_tokens} decoded, {usage.rm_calls} responses scored")
print(f"{usage.acceptance_rate:.0%} of the candidates accepted, {usage.fallback_rate:.0%} of the segments are fallbacks")

# %% [markdown]
# ## 4. Follow the stream
#
# A method yields events. The response, the trace and the cost are built from them. The same seed gives the same text
# again; each `x` is a rejected candidate.

# %%
for event in decoder.stream(prompt, max_tokens=56, seed=2):
    if isinstance(event, cards.Rejected):
        print("x", end="")
    elif isinstance(event, cards.Accepted | cards.Fallback):
        print(event.segment.text, end="")

# %% [markdown]
# ## 5. Use another method
#
# A method is an object, or a name with settings after a colon. `cards methods` lists all of them. The loaded models
# are shared.

# %%
rival = cards.Decoder(engine, reward, "best-of-n:n=4")
rival(prompt, max_tokens=56, seed=2, trace=True)

# %% [markdown]
# ## 6. Decode a batch
#
# The prompts are decoded concurrently, each with its own seed.

# %%
questions = ["Do you like music?", "Tell me about your dog.", "What did you do today?", "Which book should I read?"]
prompts = [[cards.Message(role="user", content=question)] for question in questions]
for answer in decoder.batch(prompts, max_tokens=24, progress=False):
    print(f"{answer.reward:6.2f} {answer.text.strip()}")

# %% [markdown]
# ## 7. Compare methods
#
# Compare the mean reward with the cost. This reward steers, so the table flatters methods that search for it. `cards
# bench` uses a second reward for evaluation, more prompts, and intervals.

# %%
for method in ("best-of-n:n=2", "best-of-n:n=8", "blockwise:block=8,candidates=4", "cards:target=1", "cards:target=3"):
    results = cards.Decoder(engine, reward, method).batch(prompts * 2, max_tokens=24, progress=False)
    rewards = [r.reward for r in results if r.reward is not None]
    decoded = sum(r.usage.lm_decoded_tokens for r in results)
    print(f"{method:30} reward {sum(rewards) / len(rewards):5.2f}  tokens decoded {decoded}")

# %% [markdown]
# ## 8. Write a reward
#
# A reward can be any function of the prompt and the response. It has its own scale, so CARDS needs a target: here at
# most three words. The hard test accepts only segments that reach the threshold.


# %%
def few_words(prompt: str, response: str) -> float:
    return -len(response.split()) / 10


strict = cards.CARDS(target=-0.3, acceptance="hard", alpha=1.0)
cards.Decoder(engine, few_words, strict)(prompt, max_tokens=32, seed=1, trace=True)

# %% [markdown]
# ## 9. Combine rewards
#
# Here the response should please the RM and have 5 to 12 words.

# %%
both = cards.rewards.WeightedSum([reward, cards.rewards.LengthReward(5, 12, graded=True)], [1.0, 2.0])
cards.Decoder(engine, both, "best-of-n:n=8")(prompt, max_tokens=32, seed=1, trace=True)

# %% [markdown]
# ## 10. Require a form
#
# A grammar restricts every candidate. The reward chooses among the texts that match it (needs the extra
# `structured`).

# %%
grammar = cards.Grammar.regex(r"(I|We) (liked|hated) [a-z]+( [a-z]+){0,5}\.")
cards.Decoder(engine, reward, "best-of-n:n=4")(prompt, max_tokens=32, seed=1, grammar=grammar, trace=True)
