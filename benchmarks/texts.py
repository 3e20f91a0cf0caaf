"""Prompts for measuring speculation: texts that copy from their prompt, code, and open chat."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

ARTICLE = (
    "The Amber Lighthouse stands at the northern end of Corran Island. It was built in 1847 by the "
    "engineer Thomas Wexley, who also designed the harbour wall. The tower is 34 metres high and "
    "its lamp can be seen from 21 nautical miles away. In 1912 a storm destroyed the keeper's "
    "cottage, and the keeper, Ada Brannigan, lived in the tower for two years until a new cottage "
    "was finished. The light was automated in 1983. Today the lighthouse is a museum with about "
    "12,000 visitors a year."
)
MINUTES = (
    "Present were Maria, Jonas and Priya. Jonas reported that the new pump arrived on Tuesday and "
    "will be installed by the end of the month. Priya asked for a second supplier of filters, "
    "because the last delivery was nine days late. Maria will ask three companies for prices. The "
    "budget for repairs was raised from 4,000 to 5,500 euros. The next meeting is on 14 March."
)
CODE = """def add_item(items, name, price):
    items.append({"name": name, "price": price})
    return items


def total(items):
    result = 0
    for item in items:
        result += item["price"]
    return result
"""


def chat(text: str) -> list[dict[str, str]]:
    """A user's message."""
    return [{"role": "user", "content": text}]


COPY = (
    chat(f"Repeat the following text word for word.\n\n{ARTICLE}"),
    chat(f"{ARTICLE}\n\nQuote the sentences of this text that contain a number."),
    chat(f"Summarize this text in three sentences.\n\n{ARTICLE}"),
    chat(f"Fix the spelling and give back the whole text.\n\n{MINUTES}"),
    chat(f"{MINUTES}\n\nWhat did each person do or say? Quote the text."),
    chat(f"Add a docstring to each function and give back all code.\n\n```python\n{CODE}```"),
)
WRITE_CODE = (
    "def quicksort(items):\n    ",
    chat("Write a Python function that tells whether a string is a palindrome, with a test."),
    "class Stack:\n    def __init__(self):\n",
    chat("Write a Python class for a bank account with deposit and withdraw."),
    "import csv\n\n\ndef read_rows(path):\n",
    chat("Write an HTML page with a form for a name and an e-mail address."),
)
CHAT = (
    chat("What should I see on a weekend in Rome?"),
    chat("Why is the sky blue? Explain it to a child."),
    chat("I feel tired every afternoon. What could help?"),
    chat("Tell me a short story about a fox and a clockmaker."),
    chat("What are the advantages of learning to play the piano?"),
    chat("Compare cats and dogs as pets."),
)
KINDS: Mapping[str, tuple[str | list[dict[str, str]], ...]] = {
    "copies from its prompt": COPY,
    "code": WRITE_CODE,
    "open chat": CHAT,
}

_STEMS = (
    "The history of {} began",
    "Here is a list of facts about {}:\n1.",
    "Question: What is {}?\nAnswer:",
    "Once upon a time there was a girl who loved {}.",
    "def {}(",
    "Dear Sir or Madam,\n\nI am writing to you about {}",
    "The most surprising thing about {} is",
    "Translate to French: I like {}.\nFrench:",
    "Pros of {}:\n-",
    "{} {} {} {}",
)
_TOPICS = (
    "bread",
    "lighthouses",
    "music",
    "bicycles",
    "mathematics",
    "winter",
    "chess",
    "tea",
    "rivers",
    "paper",
)


def hundred() -> list[str]:
    """A hundred short beginnings of different kinds."""
    return [stem.replace("{}", topic) for stem, topic in product(_STEMS, _TOPICS)]
