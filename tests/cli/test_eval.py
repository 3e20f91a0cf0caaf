"""`anyorder eval`: its tables are what engine and sacrebleu say, and its mistakes are one line."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import sacrebleu
import torch
from tests.cli.checkpoint import save_checkpoint
from tests.cli.conftest import Run
from tests.model.seq2seq import make

import anyorder
from anyorder.cli import eval as eval_verb
from anyorder.evaluation import translation
from anyorder.evaluation.brier import brier
from anyorder.evaluation.translation import Translations
from anyorder.model.checkpoint import open_folder
from anyorder.model.classifier import Classifier, load_classifier, save_classifier
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.documents import Document, Encoder, PairEncoder

TEXTS = {
    "Emma": ["It was a bright day.\n", "Nobody had expected it to last, not even the oldest.\n"],
    "Persuasion": ["The bath was cold and the water was brown.\n", "He wrote it down.\n"],
}
RECIPE = """
[model]
width = 16
layers = 1
heads = 1
[data]
sources = [{ path = "books.jsonl", hold_out = ["Emma"] }]
length = 24
vocabulary = 300
[objective]
name = "next_token"
[optimizer]
learning_rate = 1e-3
[run]
steps = 1
batch_size = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    rows = [{"title": title, "text": text} for title, texts in TEXTS.items() for text in texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "books.jsonl").write_text(lines, "utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    return str(tmp_path / "recipe.toml")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second checkpoint, laid out like a finished run."""
    return str(save_checkpoint(tmp_path_factory.mktemp("runs") / "other" / "model", seed=1))


def diffusion(model: str, folder: Path, **fields: object) -> str:
    """The checkpoint, as if it had been trained otherwise."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["anyorder"] = {"attention": ["bidirectional"], "mask_token": 5, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def rows(outcome: Any) -> list[list[str]]:
    """The cells of a printed table."""
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# -------------------------------------------------------------------------------------- likelihood
def test_likelihood_is_the_engines_score(run: Run, model: str, recipe: str) -> None:
    data = run("eval", model, "--data", recipe, "--length", "200", "--json").json
    tokenizer = Tokenizer.from_folder(Path(model))
    encoder, engine = Encoder.of(tokenizer), anyorder.Engine(model)
    logprobs: list[float] = []
    num_bytes = num_words = 0
    for text in TEXTS["Emma"]:
        tokens, _ = encoder.encode(Document(text=text))
        logprobs += engine.score(tokens).logprobs
        rest = text.removeprefix(tokenizer.decode(tokens[:1]))
        num_bytes, num_words = num_bytes + len(rest), num_words + len(rest.split())
    (row,) = data["rows"]
    assert row["tokens"] == len(logprobs) and row["bytes"] == num_bytes
    assert row["perplexity"] == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)), rel=1e-4)
    assert row["word_perplexity"] == pytest.approx(math.exp(-sum(logprobs) / num_words), rel=1e-4)
    expected = -sum(logprobs) / num_bytes / math.log(2)
    assert row["bits_per_byte"] == pytest.approx(expected, rel=1e-4)
    assert row["likelihood"] == "exact" and data["task"] == "likelihood"
    assert "validation part" in data["notes"][0]


def test_a_cache_of_8_bits_is_a_row_more(run: Run, model: str, recipe: str) -> None:
    flags = ("eval", model, "--data", recipe, "--length", "200", "--json")
    (exact, rounded) = run(*flags, "--cache-dtype", "int8").json["rows"]
    assert run(*flags).json["rows"][0].items() <= exact.items()
    assert rounded["model"] == f"{exact['model']} (int8 cache)"
    score = anyorder.Engine(model, cache_dtype="int8").score
    encoder = Encoder.of(Tokenizer.from_folder(Path(model)))
    texts = [encoder.encode(Document(text=text))[0] for text in TEXTS["Emma"]]
    logprobs = [logprob for tokens in texts for logprob in score(tokens).logprobs]
    expected = math.exp(-sum(logprobs) / len(logprobs))
    assert rounded["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert run(*flags, "--cache-dtype", "int4").code == 2


def test_models_are_compared(run: Run, model: str, other: str, recipe: str, tmp_path: Path) -> None:
    masked = diffusion(model, tmp_path / "masked")
    uniform = diffusion(model, tmp_path / "uniform", mask_token=None)
    block = diffusion(model, tmp_path / "block", block_size=4)
    files = [tmp_path / name for name in ("table.md", "table.json")]
    flags = ("--data", recipe, "--num-draws", "3", "--rows", "2")
    outcome = run("eval", model, other, masked, uniform, block, *flags, "--output", str(files[0]))
    head, first, second, *bounds = rows(outcome)
    assert head[:4] == ["model", "likelihood", "tokens", "perplexity"] and head.count("ratio") == 2
    assert first[0] == model and first[4] == "1.000"
    assert second[0] == other.removesuffix("/model")
    named = ["masked_diffusion", "uniform_diffusion", "block_diffusion"]
    assert [bound[1] for bound in bounds] == [f"bound ({name})" for name in named]
    assert all(bound[5] != "–" for bound in bounds) and first[5] == "–"
    assert len({row[2] for row in (first, second, *bounds)}) == 1
    assert "over 3 draws" in outcome.out and "CPU threads" in outcome.out
    assert files[0].read_text("utf-8").splitlines()[:4] == outcome.out.splitlines()[:4]
    run("eval", masked, *flags, "--output", str(files[1]))
    (row,) = json.loads(files[1].read_text("utf-8"))["rows"]
    assert f"{row['perplexity']:,.2f}" == bounds[0][3]  # the same noise


def test_on_a_terminal_the_table_is_markdown_too(
    run: Run, model: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich import console

    plain = run("eval", model, model, "--data", recipe)
    monkeypatch.setattr(eval_verb, "on_terminal", lambda: True)
    wide = functools.partial(console.Console, width=200)
    monkeypatch.setattr(console, "Console", wide)
    assert rows(run("eval", model, model, "--data", recipe)) == rows(plain)


def test_what_a_model_was_trained_for_can_be_said(run: Run, model: str, recipe: str) -> None:
    flags = ("--data", recipe, "--num-draws", "2", "--json")
    data = run("eval", model, model, *flags, "--objective", "next_token", "uniform_diffusion").json
    assert [row["objective"] for row in data["rows"]] == ["next_token", "uniform_diffusion"]
    outcome = run("eval", model, *flags, "--objective", "medusa")
    assert outcome.code == 2 and "there is no likelihood for medusa" in outcome.err


@pytest.mark.parametrize(
    ("objective", "options"),
    [("next_token", ""), ("uniform_diffusion", ""), ("block_diffusion", "block_size = 4")],
)
def test_a_finished_run_says_what_it_was_trained_for(
    run: Run, recipe: str, tmp_path: Path, objective: str, options: str
) -> None:
    text = RECIPE.replace('name = "next_token"', f'name = "{objective}"\n{options}')
    Path(recipe).write_text(text)
    outcome = run("train", recipe, "--output", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    data = run("eval", outcome.out.strip(), "--data", recipe, "--num-draws", "2", "--json").json
    (row,) = data["rows"]
    assert row["objective"] == objective and row["model"] == str(tmp_path / "run")
    # All tokens but the first of each document, its end included.
    assert 20 < row["tokens"] < row["bytes"] and 1 < row["perplexity"] < 1000


def test_text_files_and_fewer_documents(run: Run, model: str, tmp_path: Path) -> None:
    paths = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A bright cold day, " * 3)
        paths.append(str(tmp_path / name))
    both = run("eval", model, "--data", *paths, "--json").json["rows"][0]
    one = run("eval", model, "--data", *paths, "--num", "1", "--json").json["rows"][0]
    assert both["tokens"] == 2 * one["tokens"] and both["nats"] == pytest.approx(one["nats"])


# ------------------------------------------------------------------------------------- translation
def test_translations_that_are_given(run: Run, tmp_path: Path) -> None:
    pairs = [("the house is big", "das Haus ist groß"), ("a red dog", "ein roter Hund")]
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    outputs = {"good": ["das Haus ist groß", "ein roter Hund"], "bad": ["das das", ""]}
    for name, texts in outputs.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    data = ("--data", str(tmp_path / "pairs.tsv"), "--task", "translation")
    files = [str(tmp_path / f"{name}.txt") for name in outputs]
    found = run("eval", *files, *data, "--json").json
    for row, texts in zip(found["rows"], outputs.values(), strict=True):
        assert row["bleu"] == sacrebleu.corpus_bleu(texts, [[b for _, b in pairs]]).score
    assert "sacreBLEU" not in found["notes"][0] and "version:" in found["notes"][1]
    head, good, bad = rows(run("eval", *files, *data))
    assert head[:4] == ["model", "BLEU", "ratio", "chrF"] and good[1] == "100.00"
    assert bad[head.index("empty")] == "0.500" and bad[head.index("repeated")] == "0.500"


def test_translating_with_a_decoder(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("the house\tdas Haus\na red dog\tein roter Hund\n")
    flags = ("--data", str(file), "--task", "translation", "--max-new-tokens", "5", "--json")
    (row,) = run("eval", model, *flags).json["rows"]
    assert row["method"] == "autoregressive" and row["tokens_per_pass"] == pytest.approx(1)
    (row,) = run("eval", model, *flags, "--method", "beam_search", "-o", "width=2").json["rows"]
    assert row["method"] == "beam_search"


def test_encoder_decoders(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likelihood as transformers has it, translations as the engine makes them."""
    tokenizer = Tokenizer.from_folder(Path(model))
    (end,) = PairEncoder.of(tokenizer).end
    changes = {"vocab_size": tokenizer.vocabulary_size, "pad_token_id": 1, "eos_token_id": end}
    twin = make("bart", **changes, decoder_start_token_id=end, forced_eos_token_id=end)
    folder = tmp_path / "bart"
    twin.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model) / name, folder)
    file = tmp_path / "pairs.tsv"
    pairs = [("the house is big", "das Haus ist groß"), ("a dog", "ein roter Hund")]
    file.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    nats = num_tokens = 0.0
    for source, text in pairs:
        target = [*tokenizer.encode(text, add_special=False), end]
        labels = torch.tensor([target])
        out = twin(input_ids=torch.tensor([tokenizer.encode(source)]), labels=labels)
        nats, num_tokens = nats + float(out.loss) * len(target), num_tokens + len(target)
    (row,) = run("eval", str(folder), "--data", str(file), "--json").json["rows"]
    assert row["tokens"] == num_tokens and row["objective"] == "encoder_decoder"
    assert row["nats"] == pytest.approx(nats / num_tokens, rel=1e-4)
    assert row["bytes"] == sum(len(text.encode()) for _, text in pairs)
    flags = ("--data", str(file), "--task", "translation", "--max-new-tokens", "6", "--json")
    (row,) = run("eval", str(folder), *flags).json["rows"]
    engine = anyorder.Engine(folder)
    texts = [engine.generate(source, max_new_tokens=6).text for source, _ in pairs]
    expected = sacrebleu.corpus_chrf([" ".join(t.split()) for t in texts], [[b for _, b in pairs]])
    assert row["chrf"] == pytest.approx(expected.score)
    # A pair too long for one of them counts for none.
    long, given = tmp_path / "long.tsv", tmp_path / "given.txt"
    long.write_text(f"{'house ' * 999}\tHaus\n{file.read_text('utf-8')}", "utf-8")
    given.write_text("\n".join(["x", *(" ".join(text.split()) for text in texts)]), "utf-8")
    data = run("eval", str(folder), str(given), "--data", str(long), *flags[2:]).json
    assert [row["chrf"] for row in data["rows"]] == [pytest.approx(expected.score)] * 2
    assert "; 2 pairs; 1 left out, too long for an encoder." in data["notes"][0]
    made = tmp_path / "made.jsonl"
    plain = ("--pairs", str(file), "--temperature", "0", "--max-new-tokens", "6")
    assert run("data", "synthesize", str(made), "-m", str(folder), *plain).code == 0
    assert [json.loads(line)["text"] for line in made.read_text("utf-8").splitlines()] == texts
    # As long as its context has room for, and without what it cannot read.
    full = ("data", "synthesize", str(tmp_path / "full.jsonl"), "-m", str(folder))
    outcome = run(*full, "--pairs", str(long), "--temperature", "0")
    assert outcome.code == 0 and "1 of 3 sources are too long for the encoder" in outcome.err
    lines = (tmp_path / "full.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [source for source, _ in pairs]
    asked: list[list[str]] = []

    def spy(engine: anyorder.Engine, sources: list[str], *rest: Any) -> Translations:
        asked.append(sources)
        return Translations(texts=("x", "y"), num_tokens=2, num_passes=2, seconds=1.0)

    monkeypatch.setattr(translation, "translate", spy)
    run("eval", str(folder), model, *flags)  # with a separator for the decoder alone
    assert asked == [[source for source, _ in pairs], [f"{source}\n" for source, _ in pairs]]
    outcome = run("eval", str(folder), "--data", str(file), "--length", "9")
    assert outcome.code == 2 and "pairs are measured whole" in outcome.err


# ---------------------------------------------------------------------------------------- drafting
def test_drafting(run: Run, model: str, other: str) -> None:
    flags = ("--task", "drafting", "--data", "builtin:lists", "--num", "2")
    small = (*flags, "--max-new-tokens", "16", "--ignore-end")
    data = run("eval", model, *small, "--draft", model, other, "--json").json
    plain, itself, stranger = data["rows"]
    assert plain["method"] == "autoregressive" and plain["tokens_per_pass"] == pytest.approx(1)
    assert itself["num_new_tokens"] == stranger["num_new_tokens"] == 32
    assert itself["mean_accepted_length"] > stranger["mean_accepted_length"] >= 1
    both = (*small, "--in-flight", "2", "-o", "adaptive=false")
    data = run("eval", model, *both, "--draft", model, "--json").json
    assert "2 at a time" in data["notes"][0] and data["rows"][1]["mean_accepted_length"] > 2
    table = rows(run("eval", model, *small, "-o", "drafter=prompt_lookup"))
    assert [row[0] for row in table] == ["drafter", "(none)", "prompt_lookup"]
    table = rows(run("eval", model, *small, "--method", "jacobi"))
    assert [row[:2] for row in table[1:]] == [["(none)", "autoregressive"], ["jacobi", "jacobi"]]


# ----------------------------------------------------------------------------------------- quality
def test_quality_of_given_samples(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"text": "a b a b a b"}\n{"text": "a c", "prompt": "x "}\n')
    (row,) = run("eval", str(file), "--task", "quality", "--json").json["rows"]
    assert row["num_samples"] == 2 and row["distinct_1"] == pytest.approx(3 / 8)
    assert "perplexity" not in row
    data = run("eval", str(file), "--task", "quality", "--judge", model, "--json").json
    assert data["rows"][0]["perplexity"] > 1 and "repetition lowers it" in data["notes"][1]


def test_quality_of_a_models_samples(run: Run, model: str, recipe: str) -> None:
    flags = ("--task", "quality", "--data", recipe, "--prompt-tokens", "5", "--max-new-tokens")
    data = run("eval", model, *flags, "8", "--json").json
    real, samples = data["rows"]
    assert real["model"] == "(the text itself)" and samples["model"] == model
    assert real["num_samples"] == samples["num_samples"] == 2
    many = Path(recipe).with_name("many.jsonl")
    lines = [
        {"text": f"The {n} birds of the wood sang as the {7 * n} days went by."} for n in range(40)
    ]
    many.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = ("--task", "quality", "--judge", model, "--mauve")
    data = run("eval", model, *judged, "--data", str(many), "--max-new-tokens", "9", "--json").json
    assert data["rows"][0]["mauve"] > 0.5 > data["rows"][1]["mauve"] > 0
    assert "one half with the other" in data["notes"][-1]
    outcome = run("eval", str(many), *judged)
    assert outcome.code == 2 and "--mauve needs --judge, and a model" in outcome.err
    text = " ".join(TEXTS["Persuasion"])
    long = Path(recipe).with_name("long.jsonl")
    long.write_text(json.dumps({"text": text}) + "\n")
    copies = ("--task", "quality", "--copied-from", recipe, "--json")
    assert run("eval", str(long), *copies).json["rows"][0]["copied"] == 3 / 8
    other = run("eval", model, *flags, "8", "--seed", "9", "--json").json["rows"]
    assert other[0] == real and other[1] != samples
    file = Path(recipe).with_name("asked.jsonl")
    lines = [{"prompt": prompt, "text": "b"} for prompt in ("Why?", "How?", "Why?", "Who?")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = Path(recipe).with_name("asked.toml")
    books = '{ path = "books.jsonl", hold_out = ["Emma"] }'
    asked = '{ path = "asked.jsonl", prompt = "prompt", hold_out = ["asked.jsonl"] }'
    named.write_text(RECIPE.replace(books, asked))
    small = ("--task", "quality", "--data", str(named), "--max-new-tokens", "4", "--json")
    assert run("eval", model, *small).json["rows"][0]["num_samples"] == 3  # each prompt once
    assert run("eval", model, *small, "--num", "2").json["rows"][0]["num_samples"] == 2
    built_in = ("--task", "quality", "--data", "builtin:lists", "--num", "3", "--max-new-tokens")
    assert len(run("eval", model, *built_in, "8", "--json").json["rows"]) == 1


# ---------------------------------------------------------------------------------- brier, exposure
def test_brier(run: Run, model: str, recipe: str) -> None:
    flags = ("--task", "brier", "--data", recipe, "--prompt-tokens", "6", "--num", "4", "--seed")
    data = run("eval", model, *flags, "3", "--json").json
    encoder, engine = Encoder.of(Tokenizer.from_folder(Path(model))), anyorder.Engine(model)
    drawn: list[list[int]] = []
    true: list[list[int]] = []
    for text in TEXTS["Emma"]:
        tokens, _ = encoder.encode(Document(text=text))
        for start in range(0, len(tokens) - 9, 10):
            for _ in range(2):
                request = anyorder.Request(
                    prompt=tokens[start : start + 6],
                    max_new_tokens=4,
                    temperature=1.0,
                    seed=3 + len(drawn),
                    ignore_end=True,
                )
                drawn.append(engine.generate([request])[0].tokens)
            true.append(tokens[start + 6 : start + 10])
    expected = brier(drawn[:8:2], drawn[1:8:2], true[:4])
    (row,) = data["rows"]
    assert row["num_places"] == 4 and row["brier_1"] == pytest.approx(expected.scores[0])
    assert row["brier_lm"] == pytest.approx(expected.brier_lm)
    outcome = run("eval", model, *flags, "3", "--max-new-tokens", "9")
    assert outcome.code == 2 and "leave --max-new-tokens out" in outcome.err


def test_exposure(run: Run, model: str, other: str, recipe: str, tmp_path: Path) -> None:
    plot = tmp_path / "bias.svg"
    flags = ("--task", "exposure", "--data", recipe, "--prompt-tokens", "4", "--steps", "6")
    outcome = run("eval", model, *flags, "--oracle", other, "--plot", str(plot), "--json")
    (row,) = outcome.json["rows"]
    assert row["num_texts"] >= 2 and row["gold_error"] > 0 and row["own_error"] > 0
    ElementTree.fromstring(plot.read_text("utf-8"))
    assert "temperature 1 behind 4 tokens" in outcome.json["notes"][0]
    again = run("eval", model, *flags, "--oracle", other, "--temperature", "0.5", "--json").json
    assert again["rows"][0]["gold_error"] == pytest.approx(row["gold_error"], rel=0.5)
    assert again["rows"][0]["own_error"] != row["own_error"]
    for arguments, words in {
        (): "exposure needs --oracle",
        ("--oracle", other, "--plot", "x.png"): "ending in .svg",
        ("--oracle", other, "--max-new-tokens", "3"): "is not for --task exposure",
    }.items():
        outcome = run("eval", model, *flags, *arguments)
        assert outcome.code == 2 and words in outcome.err


# ---------------------------------------------------------------------------------- classification
def test_classification(run: Run, model: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(Path(model))
    torch.manual_seed(0)
    classifier = Classifier(
        open_folder(Path(model))[0],
        labels={name: tokenizer.encode(name, add_special=False)[0] for name in ("yes", "no")},
        narrow=8,
        exits=True,
    )
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_(0, 0.3)
    folder = tmp_path / "classifier"
    fields = json.loads((Path(model) / "config.json").read_text())
    save_classifier(folder, classifier, fields, Path(model))
    rows_given = [("Is it day?", "yes"), ("Is it night?", "no"), ("Is it cold?", "yes")]
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{text}\t{label}\n" for text, label in rows_given))
    flags = ("--task", "classification", "--data", str(file))
    found = run("eval", str(folder), *flags, "--thresholds", "1", "--json").json["rows"]
    spelled = [f"{text}\n" for text, _ in rows_given]
    texts = [tokenizer.encode(text, add_special=False, parse_special=False) for text in spelled]
    verdicts = load_classifier(folder).classify(texts, threshold=0.0)
    right = sum(v.label == label for v, (_, label) in zip(verdicts, rows_given, strict=True))
    assert found[0]["accuracy"] == right / 3 and found[0]["threshold"] == 0
    assert found[0]["flops"] == sum(v.flops for v in verdicts) / 3
    assert found[1]["mean_layers"] == 1 and found[1]["speedup"] > 1
    assert len(rows(run("eval", str(folder), *flags))) == 11
    for given, arguments, words in (
        (model, flags, "describes no classifier"),
        (str(folder), (*flags, "--thresholds", "2"), "above 0 and up to 1, got '2'"),
        (str(folder), (*flags[:3], str(file.with_suffix(".txt"))), "texts without a label"),
    ):
        file.with_suffix(".txt").write_text("No label.")
        outcome = run("eval", given, *arguments)
        assert outcome.code == 2 and words in outcome.err


# ---------------------------------------------------------------------------------------- mistakes
def test_mistakes(run: Run, model: str, recipe: str, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("A bright cold day.")
    for arguments, words in {
        (): "--data",
        ("--data", recipe, "--task", "likelyhood"): "did you mean 'likelihood'",
        ("--data", recipe, "--judge", "x"): "--judge is not for --task likelihood",
        ("--data", recipe, "--temperature", "1"): "--temperature is not for --task likelihood",
        ("--data", str(text), "--task", "quality", "--length", "9"): "--length is not for",
        ("--data", recipe, "--quantize", "int3"): "quantize must be one of int8, int4",
        ("--data", recipe, "--task", "classification", "--quantize", "int8"): "--quantize is not",
        ("--data", recipe, "--part", "train"): "one of validation, test, got 'train'",
        ("--data", recipe, "--part", "test"): "holds no test data out",
        ("--data", str(text), "--part", "test"): "--part is a recipe's",
        ("--data", recipe, str(text)): "a recipe stands alone",
        ("--data", "jane-austin"): "did you mean 'jane-austen'",
        ("--data", "jane-austen"): "anyorder data pull jane-austen",
        ("--data", str(tmp_path / "none.txt")): "is no file or folder",
        ("--data", recipe, "--output", "x.csv"): "must end in .md or .json",
        ("--data", recipe, "--num", "0"): "--num must be an integer of at least 1, got '0'",
        ("--data", recipe, "--length", "999"): "the context of",
        ("--data", recipe, "--objective", "nexttoken"): "did you mean 'next_token'",
        ("--data", recipe, "--objective", "a", "b"): "one for each of the 1 models, got 2",
        ("--data", recipe, "--block-size", "4"): "goes with --objective block_diffusion",
        ("--data", str(text), "--task", "translation"): "holds no pairs",
        ("--data", "builtin:x", "--task", "drafting"): "unknown set of prompts 'x'",
        (model, "--data", str(text), "--task", "drafting"): "one model, got 2",
    }.items():
        outcome = run("eval", model, *arguments)
        assert outcome.code == 2 and words in outcome.err, (arguments, outcome.err)
        assert outcome.err.count("\n") == 1 and outcome.out == ""
    samples = tmp_path / "bad.jsonl"
    samples.write_text('{"text": "a"}\n{"txt": "b"}\n')
    outcome = run("eval", str(samples), "--task", "quality")
    assert outcome.code == 2 and "line 2 is not an object with a text" in outcome.err
