"""BERT and ModernBERT filling in texts: what a plain loop over transformers' own model gives."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.test_masked_models import VOCABULARY, reference
from tests.tiny import assert_no_page_is_lost
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from anyorder.core.errors import ContextOverflow, UnsupportedMethod
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model import loaded

CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_, _, CLS, SEP, MASK = range(5)
WORDS = ["the", "capital", "of", "france", "is", "paris", "##s", "."]
PROMPT = "The capital of France"
PROMPT_IDS = [CLS, 5, 6, 7, 8]
LENGTH = 4


def tokenizer() -> Tokenizer:
    """BERT's kind: lower case, words and their endings, a text within [CLS] and [SEP]."""
    texts = [*CONTROL, *WORDS]
    texts += [f"##{number}" for number in range(VOCABULARY - len(texts))]
    vocabulary = {text: token for token, text in enumerate(texts)}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(CONTROL)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return made


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(case: str, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp(case)
    reference(case).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return Engine(loaded.load(folder), cache_tokens=1024)


def generate(engine: Engine, **fields: Any) -> Any:
    fields = {"prompt": PROMPT, "max_new_tokens": LENGTH, "ignore_end": True, **fields}
    completion = engine.generate(Request(**fields))
    assert_no_page_is_lost(engine)
    return completion


@functools.cache
@torch.inference_mode()
def told(case: str, board: tuple[int | None, ...]) -> torch.Tensor:
    """What transformers' model says of each place, within the frame."""
    line = [*PROMPT_IDS, *(MASK if token is None else token for token in board), SEP]
    logits = reference(case)(torch.tensor([line])).logits[0, len(PROMPT_IDS) : -1].double()
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


def test_gibbs(engine: Engine, case: str) -> None:
    board: list[int | None] = [None] * LENGTH
    for _ in range(3):
        for place in range(LENGTH):
            board[place] = None
            board[place] = int(told(case, tuple(board))[place].argmax())
    options = {"order": "sequential", "burn_in": 1, "sweeps": 2}
    assert generate(engine, method="gibbs", options=options).tokens == board


def test_masked_diffusion(engine: Engine, case: str) -> None:
    """The surest place first."""
    board: list[int | None] = [None] * LENGTH
    logprobs = [0.0] * LENGTH
    while None in board:
        rows = told(case, tuple(board))
        place = max((p for p in range(LENGTH) if board[p] is None), key=lambda p: rows[p].max())
        board[place], logprobs[place] = int(rows[place].argmax()), float(rows[place].max())
    completion = generate(engine, method="masked_diffusion")
    assert completion.tokens == board
    assert completion.choices[0].logprobs == pytest.approx(logprobs, abs=1e-4)


def test_mask_predict(engine: Engine, case: str) -> None:
    """Half of the tokens a second time."""
    rows = told(case, (None,) * LENGTH)
    tokens, sure = rows.argmax(-1).tolist(), rows.max(-1).values
    again = sure.argsort()[: LENGTH // 2].tolist()
    rows = told(case, tuple(None if p in again else tokens[p] for p in range(LENGTH)))
    for place in again:
        tokens[place] = int(rows[place].argmax())
    options = {"iterations": 2}
    assert generate(engine, method="mask_predict", options=options).tokens == tokens


def test_a_canvas_may_name_the_tokenizers_own_mask(engine: Engine, case: str) -> None:
    """And its text is not framed once more."""
    rows = told(case, (None, 9, 10))
    completion = generate(
        engine, canvas="[MASK] is Paris", max_new_tokens=None, method="masked_diffusion"
    )
    assert completion.tokens == [int(rows[0].argmax()), 9, 10]


def test_the_frame_takes_its_share_of_the_context(engine: Engine) -> None:
    room = 64 - len(PROMPT_IDS) - 1
    assert len(generate(engine, max_new_tokens=room, method="mask_predict").tokens) == room
    with pytest.raises(ContextOverflow, match=f"at most {room} new"):
        generate(engine, max_new_tokens=room + 1, method="mask_predict")


def test_the_frame_ends_a_text(engine: Engine) -> None:
    assert SEP in engine.roles["target"].abilities.end_tokens


def test_no_method_reads_it_from_left_to_right(engine: Engine) -> None:
    with pytest.raises(UnsupportedMethod, match="causal attention"):
        generate(engine, method="autoregressive")
