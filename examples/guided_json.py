"""Text that is valid JSON of a given schema, whatever the model would rather say."""

import json

import anyorder

schema = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
engine = anyorder.Engine("smollm2-135m-instruct")
request = anyorder.Request(
    prompt=[{"role": "user", "content": "Describe Paris as JSON with city and country."}],
    guide=anyorder.Guide.json_schema(schema),
    max_new_tokens=48,
)
(answer,) = engine.generate([request])
print(json.loads(answer.text))
