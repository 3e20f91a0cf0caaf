"""Which of two sentences does the model find likelier? Log-probabilities by the chain rule."""

import math

import anyorder

engine = anyorder.Engine("smollm2-135m-instruct")
for text in ("The capital of France is Paris.", "The capital of France is Potato."):
    score = engine.score(text)
    perplexity = math.exp(-score.total / len(score.logprobs))
    print(f"{score.total:8.2f} nats, perplexity {perplexity:8.1f}: {text}")
