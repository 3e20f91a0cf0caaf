"""`anyorder data`: the list, pulling what needs no network, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import Run

import anyorder
from anyorder.training import corpora
from anyorder.training.readers import Source, read

LOCAL = "python-standard-library"


def test_list(run: Run) -> None:
    lines = run("data", "list").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(corpora.CATALOG)
    assert all("not here" in line for line in lines[1:])
    assert "MPL-2.0" in next(line for line in lines if line.startswith("libreoffice"))
    data = run("data", "list", "--json").json
    assert [entry["name"] for entry in data] == list(corpora.CATALOG)
    assert not any(entry["here"] for entry in data)


def test_pull(run: Run) -> None:
    outcome = run("data", "pull", LOCAL)
    assert outcome.code == 0 and "licence: PSF-2.0" in outcome.err
    file = Path(outcome.out.strip())
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert f"{len(rows):,} documents" in outcome.err
    facts = run("data", "pull", LOCAL, "--json").json
    assert facts["num_documents"] == len(rows) and facts["packages"] == []
    (line,) = (line for line in run("data", "list").out.splitlines() if line.startswith(LOCAL))
    assert f"{len(rows):,}" in line and f"{facts['num_bytes'] / 1e6:.1f} MB" in line


def test_synthesize(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "made.jsonl"
    flags = ("-m", model, "--num", "4", "--max-new-tokens", "6", "--seed", "3")
    outcome = run("data", "synthesize", str(file), "--prompts", "builtin:lists", *flags)
    assert outcome.code == 0 and outcome.out == f"{file}\n", outcome.err
    assert "4 lines made" in outcome.err and "4 lines in all" in outcome.err
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["seed"] for row in rows] == [3, 4, 5, 6]
    engine = anyorder.Engine(model)
    for row in rows:
        assert row["messages"][0] == {"role": "user", "content": row["prompt"]}
        alone = engine.generate(
            row["messages"][:1], max_new_tokens=6, temperature=1.0, seed=row["seed"]
        )
        assert row["text"] == row["messages"][1]["content"] == alone.text
        assert row["method"] == "autoregressive" and "tokens" not in row
    outcome = run("data", "synthesize", str(file), "--prompts", "builtin:lists", *flags)
    assert "0 lines made" in outcome.err and "4 lines in all" in outcome.err
    outcome = run("data", "synthesize", str(file), "--prompts", "builtin:sections", *flags)
    assert outcome.code == 2 and "was made with another prompt" in outcome.err


def test_synthesize_from_files_and_pairs(run: Run, model: str, tmp_path: Path) -> None:
    contents = {
        "p.txt": "One line.\n\nAnother.\n",
        "p.jsonl": '{"prompt": "A field."}\n',
        "p.tsv": "the house\tdas Haus\na dog\tein Hund\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    flags = ("-m", model, "--max-new-tokens", "4", "--temperature", "0", "--tokens")

    def made(name: str, *sources: str) -> list[dict[str, Any]]:
        file = tmp_path / name
        outcome = run("data", "synthesize", str(file), *sources, *flags)
        assert outcome.code == 0, outcome.err
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    both = ("--prompts", str(tmp_path / "p.txt"), "--prompts", str(tmp_path / "p.jsonl"))
    rows = made("a.jsonl", *both, "--no-chat")
    assert [row["prompt"] for row in rows] == ["One line.", "Another.", "A field."]
    expected = anyorder.Engine(model).generate("Another.", max_new_tokens=4)
    assert rows[1]["tokens"] == expected.tokens and "messages" not in rows[1]
    rows = made("b.jsonl", "--pairs", str(tmp_path / "p.tsv"))
    assert [row["prompt"] for row in rows] == ["the house", "a dog"]
    assert "messages" not in rows[0]
    engine = anyorder.Engine(model)
    expected = engine.generate("the house\n", max_new_tokens=4)  # as a decoder learns pairs
    assert rows[0]["tokens"] == expected.tokens
    assert expected.tokens != engine.generate("the house", max_new_tokens=4).tokens


def test_plan(run: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tips?", "text": "Some tips:\n\n- Drink water.\n- Sleep well.\n"},
        {"prompt": "Why?", "text": "Because."},
    ]
    given, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = run("data", "plan", str(given), str(made))
    assert outcome.code == 0 and outcome.out == f"{made}\n", outcome.err
    assert "1 of 2 texts have plans" in outcome.err
    found = list(read(Source(path=str(made), format="jsonl", plan="tagged"), print))
    assert [document.plain_text for document in found] == [row["text"] for row in rows]
    assert found[0].text != rows[0]["text"] and found[1].text == rows[1]["text"]
    assert json.loads(made.read_text().splitlines()[0])["prompt"] == "Tips?"


def test_mistakes(run: Run, model: str, tmp_path: Path) -> None:
    file, small = str(tmp_path / "a.jsonl"), ("-m", model, "--prompts", "builtin:lists")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "p.jsonl").write_text("[]\n")
    for arguments, words in {
        ("synthesize",): "needs one name, of the file",
        ("synthesize", file, "b.jsonl", *small): "needs one name, of the file",
        ("plan", file): "needs a file of rows and a file to make",
        ("plan", str(tmp_path / "p.jsonl"), file): "line 1 is not an object with a text",
        ("pull", LOCAL, "x"): "unexpected argument 'x'",
        ("synthesize", "a.txt", *small): "ending in .jsonl",
        ("synthesize", file): "either --prompts or --pairs",
        ("synthesize", file, *small, "--num", "x"): "--num must be an integer",
        ("synthesize", file, *small, "-n", "2"): "-n must be 1, got 2",
        ("synthesize", file, "--prompts", "builtin:list"): "did you mean 'lists'",
        ("synthesize", file, "--prompts", str(tmp_path / "empty.txt")): "has no prompts",
        ("synthesize", file, "--prompts", str(tmp_path / "p.jsonl")): "line 1 is not an object",
        ("synthesize", file, "--prompts", str(tmp_path / "none.txt")): "cannot read",
        ("list", "--num", "3"): "--num is for `anyorder data synthesize`",
        ("pull",): "needs a set's name",
        ("list", "x"): "takes no name",
        ("pul", "x"): "did you mean 'pull'",
        ("pull", "jane-austin"): "did you mean 'jane-austen'",
        ("pull", "jane-austen"): "ANYORDER_OFFLINE forbids downloads",
    }.items():
        outcome = run("data", *arguments)
        assert outcome.code == 2 and words in outcome.err and outcome.err.count("\n") == 1
