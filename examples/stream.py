"""A chat of two turns, streamed; the second turn finds the first in the prefix cache."""

import anyorder

engine = anyorder.Engine("smollm2-135m-instruct")
messages = []
for question in ("Name the largest ocean.", "And the smallest one?"):
    messages.append({"role": "user", "content": question})
    answer = ""
    for event in engine.stream(messages, max_new_tokens=24):
        print(event.text, end="", flush=True)
        answer += event.text
        if event.completion is not None:
            report = event.completion.report
            print(f"\n[{report.num_cached_tokens} of {report.num_prompt_tokens} tokens cached]")
    messages.append({"role": "assistant", "content": answer})
