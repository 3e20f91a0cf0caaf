"""The three best-scoring continuations, and how far greedy decoding is from them."""

import anyorder

engine = anyorder.Engine("smollm2-135m-instruct")
prompt = "The three primary colors are"
greedy = engine.generate(prompt, max_new_tokens=10)
print(f"{sum(greedy.logprobs) / len(greedy.logprobs):8.3f}  greedy: {greedy.text!r}")
best = engine.generate(prompt, method="beam_search", options={"width": 6}, n=3, max_new_tokens=10)
for choice in best.choices:
    print(f"{choice.score:8.3f}  {choice.text!r}")
