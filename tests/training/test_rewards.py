"""What rewards say of answers, and which functions a recipe may name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.options import build, describe
from anyorder.core.reward import Answer, Reward

OWN = """
from anyorder.core.reward import reward_function

LOADED = True

@reward_function
def politeness(answers):
    return [float("please" in answer.text) for answer in answers]

@reward_function
def short(answers):
    return [1.0]

@reward_function
def words(answers):
    return ["good" for _ in answers]

@reward_function
def endless(answers):
    return [float("inf") for _ in answers]

def unmarked(answers):
    raise SystemExit("never called")
"""


def make(name: str, **options: Any) -> Reward:
    reward: Reward = build(lookup.find("training/rewards", name, kind="reward"), options)
    return reward


def answer(text: str, reference: str = "the cat sat on the mat") -> Answer:
    return Answer(
        prompt="tell me",
        text=text,
        reference=reference,
        tokens=tuple(map(len, text.split())),
        reference_tokens=tuple(map(len, reference.split())),
    )


def judge(reward: Reward, *texts: str) -> list[float]:
    return reward.judge([answer(text) for text in texts])


@pytest.mark.parametrize("name", lookup.names("training/rewards"))
def test_every_reward_is_described_and_gives_a_perfect_answer_one(name: str, own: None) -> None:
    options = {"function": "my_rewards:politeness"} if name == "own" else {}
    reward = make(name, **options)
    assert all(option.description for option in describe(type(reward)))
    text = "the cat sat on the mat, please" if name == "own" else "the cat sat on the mat"
    worst, best = reward.judge([answer("dog", text), answer(text, text)])
    assert best == pytest.approx(1.0) and 0 <= worst <= best
    assert reward.judge([]) == []


def test_exact() -> None:
    assert judge(make("exact"), " the cat sat on the mat\n", "The cat sat on the mat") == [1.0, 0.0]


def test_tokens() -> None:
    found = judge(make("tokens"), "the cat sat on a mat", "the cat", "the cat sat on the mat too")
    assert found == pytest.approx([5 / 6, 2 / 6, 6 / 7])


def test_length() -> None:
    texts = ("a b c", "a b c d e f", "a b c d e f g h")
    assert judge(make("length"), *texts) == pytest.approx([0.5, 1.0, 0.75])
    assert judge(make("length", tokens=4), *texts) == pytest.approx([0.75, 4 / 6, 0.5])


def test_regex() -> None:
    assert judge(make("regex", pattern=r"\d+ cats"), "12 cats", "12 cats here") == [1.0, 0.0]
    within = make("regex", pattern=r".*{reference}.*")
    assert judge(within, "so the cat sat on the mat. yes", "the cat") == [1.0, 0.0]
    dots = within.judge([answer("a.c", "a.c"), answer("abc", "a.c")])
    assert dots == [1.0, 0.0], "the reference is no pattern"
    with pytest.raises(UserError, match=r"'\(a' is no regular expression"):
        make("regex", pattern="(a")


def test_overlap_is_sacrebleus() -> None:
    text, reference = "the cat sat on a mat", "the cat sat on the mat"
    bleu = sacrebleu.sentence_bleu(text, [reference]).score / 100
    chrf = sacrebleu.sentence_chrf(text, [reference]).score / 100
    assert judge(make("bleu"), text) == [pytest.approx(bleu)] and 0.2 < bleu < 0.9
    assert judge(make("chrf"), text) == [pytest.approx(chrf)] and 0.2 < chrf < 0.9


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_without_sacrebleu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"sacrebleu.metrics.{name}", None)
    with pytest.raises(UserError, match=rf"the reward {name} needs sacrebleu; install it"):
        judge(make(name), "a")


# ------------------------------------------------------------------------------------ one's own
@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


def test_a_function_of_ones_own(own: None) -> None:
    found = judge(make("own", function="my_rewards:politeness"), "please go", "go")
    assert found == [1.0, 0.0]


def test_only_marked_functions_are_called(own: None) -> None:
    with pytest.raises(UserError, match="my_rewards:unmarked is not marked as a reward"):
        make("own", function="my_rewards:unmarked")
    for name in ("os:system", "my_rewards:LOADED", "subprocess:run"):
        with pytest.raises(UserError, match="is not marked as a reward"):
            make("own", function=name)


def test_the_recipes_folder_is_no_place_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden_rewards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(UserError, match="cannot be imported: No module named 'hidden_rewards'"):
        make("own", function="hidden_rewards:politeness")


def test_names_that_are_none(own: None) -> None:
    for name in ("", "my_rewards", "my_rewards.politeness", "../my_rewards:politeness", "a:b:c"):
        with pytest.raises(UserError, match="is written module:function"):
            make("own", function=name)
    with pytest.raises(UserError, match="the module my_rewards has no function kindness"):
        make("own", function="my_rewards:kindness")


def test_what_it_returns_is_checked(own: None) -> None:
    with pytest.raises(UserError, match=r"returned 1 values \(float\) for 2 answers"):
        judge(make("own", function="my_rewards:short"), "a", "b")
    with pytest.raises(UserError, match=r"returned 2 values \(str\) for 2 answers"):
        judge(make("own", function="my_rewards:words"), "a", "b")
    with pytest.raises(UserError, match="returned a number that is not finite"):
        judge(make("own", function="my_rewards:endless"), "a")
