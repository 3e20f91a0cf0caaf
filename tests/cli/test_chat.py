"""`anyorder chat`, driven by a pipe."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Outcome, Run

import anyorder
from anyorder.cli.conversation import Conversation

LONG = "The capital of France is Paris, and the capital of Italy is Rome."


@pytest.fixture
def chat(run: Run, model: str) -> Run:
    def call(*lines: str, flags: tuple[str, ...] = ()) -> Outcome:
        stdin = "".join(f"{line}\n" for line in lines)
        return run("chat", "-m", model, "--max-new-tokens", "6", *flags, stdin=stdin)

    return call


@pytest.fixture
def saved(chat: Run, tmp_path: Path) -> Any:
    """Messages after some lines."""

    def call(*lines: str) -> list[dict[str, str]]:
        file = tmp_path / "saved.json"
        outcome = chat(*lines, f"/save {file}")
        assert outcome.code == 0 and outcome.err == "", outcome.err
        data: dict[str, list[dict[str, str]]] = json.loads(file.read_text("utf-8"))
        return data["messages"]

    return call


def test_answers_are_those_of_the_messages(chat: Run, model: str) -> None:
    outcome = chat(LONG, "She said", flags=("--system", "Be kind."))
    engine = anyorder.Engine(model)
    messages = [{"role": "system", "content": "Be kind."}]
    texts = []
    for question in (LONG, "She said"):
        messages.append({"role": "user", "content": question})
        texts.append(engine.generate(messages, max_new_tokens=6).text)
        messages.append({"role": "assistant", "content": texts[-1]})
    assert outcome.out == "".join(f"{text}\n" for text in texts)
    assert (outcome.code, outcome.err) == (0, "")


def test_the_second_turn_reuses_the_first(chat: Run) -> None:
    first, second = chat(LONG, "/stats", "She said", "/stats").err.splitlines()
    assert ", 0 cached;" in first
    cached = int(second.split(" cached")[0].split()[-1])
    prompt = int(second.split(" tokens, ")[0].split()[-1])
    assert 16 <= cached < prompt
    lines = chat(LONG, "She said", flags=("--stats",)).err.split()
    assert f"{cached} cached;" in " ".join(lines)


def test_messages_of_several_lines(saved: Any) -> None:
    assert saved('"""one', "two", '"""', '"""three"""')[::2] == [
        {"role": "user", "content": "one\ntwo\n"},
        {"role": "user", "content": "three"},
    ]


def test_blank_lines_are_no_turns(saved: Any) -> None:
    assert len(saved("", "  ", "Hi")) == 2


def test_undo_clear_and_system(saved: Any) -> None:
    assert [m["content"] for m in saved("one", "two", "/undo")][::2] == ["one"]
    assert saved("/system Be kind.", "one", "/clear") == [{"role": "system", "content": "Be kind."}]
    assert saved("/system Be kind.", "/system", "/clear") == []


def test_regen_takes_the_next_seed(chat: Run) -> None:
    flags = ("--temperature", "3", "--seed", "7")
    first, second = chat("She said", "/regen", flags=flags).out.splitlines()
    assert first != second
    flags = ("--temperature", "3", "--seed", "8")
    assert chat("She said", flags=flags).out.splitlines() == [second]


def test_set(chat: Run) -> None:
    outcome = chat("/set max_new_tokens 2", "/set stop END", "/set ignore_end true", "/set", "Hi")
    assert outcome.err == "max_new_tokens = 2\nstop = ['END']\nignore_end = True\n"
    assert chat("/set max-new-tokens 3", "Hi", "/stats").err.startswith("3 new tokens")
    assert chat("/set max_new_tokens", "/set seed 3", "/set").err == "seed = 3\n"
    assert chat("/set choices a 'b c'", "Hi").out in ("a\n", "b c\n")
    assert chat("/set choices a", "/set choices", "/set", "Hi").out == chat("Hi").out


def test_method(chat: Run) -> None:
    outcome = chat("/method beam_search width=2", "/set", "Hi", "/stats")
    assert "method = 'beam_search'\noptions = {'width': 2}\n" in outcome.err
    assert "6 new tokens in 6 passes" in outcome.err


def test_help_names_every_command(chat: Run) -> None:
    shown = chat("/help").err
    names = "help set method system regen undo clear save load stats trace exit"
    for name in names.split():
        assert f"\n/{name}" in f"\n{shown}"


def test_exit_leaves(chat: Run) -> None:
    assert chat("/exit", "Hi").out == ""


def test_save_and_load(chat: Run, saved: Any, tmp_path: Path) -> None:
    messages = saved("/system Be kind.", LONG)
    file, again = tmp_path / "saved.json", tmp_path / "again.json"
    outcome = chat(f"/load {file}", f"/save {again}", "She said")
    assert outcome.err == "1 questions and answers\n"
    assert json.loads(again.read_text())["messages"] == messages
    assert outcome.out == chat("/system Be kind.", LONG, "She said").out.split("\n", 1)[1]


def test_trace(chat: Run, tmp_path: Path) -> None:
    chat("Hi", f"/trace {tmp_path / 'trace.svg'}")
    assert "Hi" in (tmp_path / "trace.svg").read_text("utf-8")


MISTAKES = [
    ("/seed 3", "unknown command '/seed'"),
    ("/sett seed 3", "did you mean '/set'"),
    ("/set sed 3", "did you mean 'seed'"),
    ("/set temperature nan", "temperature must be"),
    ("/set ignore_end maybe", "ignore_end must be"),
    ("/set choices 'a", "cannot be split"),
    ("/method beam", "did you mean 'beam_search'"),
    ("/method beam_search width=0", "width must be"),
    ("/method", "a name is missing"),
    ("/regen", "nothing has been said"),
    ("/undo", "nothing has been said"),
    ("/stats", "no finished answer"),
    ("/trace x.svg", "no finished answer"),
    ("/save", "a file name is missing"),
    ("/save nowhere/chat.json", "cannot write"),
    ("/load nowhere.json", "cannot read"),
    ("word " * 400, "context of 256"),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES)
def test_a_mistake_is_told_and_the_chat_goes_on(chat: Run, line: str, words: str) -> None:
    outcome = chat(line, "She said")
    assert outcome.code == 0 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("anyorder: ") and words in outcome.err
    assert outcome.out == chat("She said").out


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"messages": 3}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
    ],
)
def test_damaged_chats_change_nothing(chat: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    outcome = chat(LONG, f"/load {file}", "She said")
    assert "is no saved chat" in outcome.err and outcome.out == chat(LONG, "She said").out


# ------------------------------------------------------------------------- what Ctrl-C leads to
@pytest.fixture(scope="module")
def engine(model: str) -> anyorder.Engine:
    return anyorder.Engine(model, cache_tokens=1024)


def test_what_was_said_before_a_stop_stays(engine: anyorder.Engine) -> None:
    conversation = Conversation(engine, system=None, fields={"max_new_tokens": 50})
    said: list[str] = []
    for piece in conversation.ask(LONG, lambda: len(said) >= 3):
        said.append(piece)
    assert len(said) == 3 and conversation.completion is None
    assert conversation.turns == [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "".join(said)},
    ]
    assert engine.generate("Hi", max_new_tokens=1).report.num_new_tokens == 1


def test_nothing_stays_of_an_answer_that_had_not_begun(engine: anyorder.Engine) -> None:
    conversation = Conversation(engine, system=None, fields={})
    assert list(conversation.ask("Hi", lambda: True)) == []
    assert conversation.turns == []


def test_leaving_an_answer_early_frees_its_pages(engine: anyorder.Engine) -> None:
    store = engine.roles["target"].store
    conversation = Conversation(engine, system=None, fields={})
    for _ in conversation.ask(LONG, lambda: False):
        break
    del conversation
    gc.collect()
    assert store.num_available == store.num_pages
