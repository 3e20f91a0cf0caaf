"""Different methods and controls share the same forward passes."""

import anyorder

engine = anyorder.Engine("smollm2-135m-instruct")
prompt = "The best thing about winter is"
requests = [
    anyorder.Request(prompt=prompt, max_new_tokens=12),
    anyorder.Request(prompt=prompt, max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1),
    anyorder.Request(
        prompt=prompt, max_new_tokens=12, method="beam_search", options={"width": 4}, stop=[","]
    ),
]
for request, answer in zip(requests, engine.generate(requests), strict=True):
    print(f"{request.method}: {answer.text.strip()}")
