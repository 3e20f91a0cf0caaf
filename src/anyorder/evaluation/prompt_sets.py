"""Prompts to synthesize text with: templates over topics, in a fixed mixed order.

    instructions    ask for an explanation, an opinion, a letter, a story
    lists           ask for numbered or bulleted points, which can be written independently
    sections        ask for a text under stated headings, which can be written side by side

All of them were written for this purpose; text made from them carries the model's licence alone.
"""

from __future__ import annotations

import hashlib
import itertools

_THINGS = (
    "the water cycle", "volcanoes", "honey bees", "the printing press", "photosynthesis",
    "the moon", "bread", "bicycles", "public libraries", "rivers", "wool", "glass", "the compass",
    "earthquakes", "coral reefs", "the heart", "sleep", "paper", "chess", "tea", "clocks",
    "lighthouses", "trains", "the alphabet", "money", "migrating birds", "oak trees", "salt",
    "the telephone", "rainbows", "mushrooms", "bridges", "the violin", "maps", "vaccines",
    "recycling", "wind turbines", "soil", "deserts", "dogs",
)  # fmt: skip
_ACTIVITIES = (
    "learning a foreign language", "growing tomatoes", "keeping a diary", "moving to a new city",
    "preparing for an exam", "baking bread at home", "running a first marathon",
    "saving money each month", "looking after an old bicycle", "speaking in front of an audience",
    "teaching a child to read", "planning a long train journey", "starting a book club",
    "sleeping better", "writing a short story", "repairing clothes", "learning to swim",
    "working from home", "taking photographs of birds", "cooking for a large family",
    "making new friends", "playing the guitar", "reading more books", "keeping a small garden",
    "walking in the mountains", "choosing a gift", "organising a village festival",
    "drawing portraits", "giving honest feedback", "visiting a museum with children",
)  # fmt: skip

_INSTRUCTIONS = (
    ("Explain {} to a ten-year-old child.", _THINGS),
    ("Write a short paragraph about {}.", _THINGS),
    ("What do people often get wrong about {}?", _THINGS),
    ("Why do {} matter to people who live in cities? If you see no reason, say so.", ("rivers",
     "bridges", "dogs", "trains", "maps", "public libraries", "bicycles", "vaccines", "oak trees",
     "clocks")),
    ("Tell a very short story in which {} plays a part.", ("the moon", "bread", "the compass",
     "the printing press", "tea", "salt", "the violin", "the telephone", "money", "sleep")),
    ("Ask three good questions about {} and answer each in one sentence.", _THINGS),
    ("A friend is thinking about {}. Write a short, friendly letter with advice.", _ACTIVITIES),
    ("What is the hardest part of {}, and what helps?", _ACTIVITIES),
    ("Describe somebody's first day of {}.", _ACTIVITIES),
    ("Is {} worth the time it takes? Give one reason for and one against.", _ACTIVITIES),
)  # fmt: skip
_LISTS = (
    ("List five facts about {} as a numbered list, one sentence each.", _THINGS),
    ("Give four questions that a curious person might ask about {}, as a bulleted list.", _THINGS),
    ("Name six words that have to do with {}, one per line, each with a short explanation.",
     _THINGS),
    ("Give five tips for {} as a numbered list, one sentence each.", _ACTIVITIES),
    ("List four mistakes to avoid when {}, as a bulleted list.", _ACTIVITIES),
    ("What does one need for {}? Answer with a bulleted list of five things and what each is for.",
     _ACTIVITIES),
    ("List the steps of {} in order, as a numbered list with at most six entries.", _ACTIVITIES),
)  # fmt: skip
_SECTIONS = (
    ("Write about {} in three short sections with the headings Origin, Use and Future.", _THINGS),
    ("Describe {} in three short sections with the headings What it is, How it works and Why it "
     "matters.", _THINGS),
    ("Write an encyclopedia entry about {} with the headings Summary, Details and Examples.",
     _THINGS),
    ("Write a guide to {} with the headings Preparation, First steps and Common problems.",
     _ACTIVITIES),
    ("Write about {} in three short sections with the headings Advantages, Disadvantages and "
     "Advice.", _ACTIVITIES),
    ("Plan a week of {}: one heading for each day from Monday to Friday, with one or two sentences "
     "below it.", _ACTIVITIES),
)  # fmt: skip

PROMPT_SETS: dict[str, tuple[str, ...]] = {
    name: tuple(
        # Mixed, so that the first few hundred are of all kinds; by a hash, so the same everywhere.
        sorted(
            itertools.chain.from_iterable(
                (template.format(topic) for topic in topics) for template, topics in templates
            ),
            key=lambda prompt: hashlib.sha256(prompt.encode()).digest(),
        )
    )
    for name, templates in (
        ("instructions", _INSTRUCTIONS),
        ("lists", _LISTS),
        ("sections", _SECTIONS),
    )
}
"""By name."""
