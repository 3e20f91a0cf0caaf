"""Generate a text and look at what it cost."""

import anyorder

engine = anyorder.Engine("smollm2-135m-instruct")
answer = engine.generate("The capital of France is", max_new_tokens=8)
print(answer.text)
print(answer.finish_reason, answer.report.num_forward_passes, "passes")
for entry in answer.trace:
    print(f"pass {entry.step}: '{entry.text}' with probability {entry.probability:.2f}")
