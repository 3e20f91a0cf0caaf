"""Many requests at once: in order, few in flight, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.tiny import assert_no_page_is_lost, tiny_engine

from anyorder.core.errors import UserError
from anyorder.core.request import Request
from anyorder.evaluation.generation import answers


def requests(count: int) -> list[Request]:
    return [
        Request(prompt=[n % 7 + 1, n % 5 + 1], max_new_tokens=1 + 5 * (n % 4), ignore_end=True)
        for n in range(count)
    ]


@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_answers_come_in_order(in_flight: int) -> None:
    engine = tiny_engine()
    alone = [engine.generate([request])[0].tokens for request in requests(20)]
    taken = 0

    def counted() -> Iterator[Request]:
        nonlocal taken
        for request in requests(20):
            taken += 1
            yield request

    found = []
    for answer in answers(engine, counted(), in_flight=in_flight):
        found.append(answer.completion.tokens)
        assert answer.num_checks == 0
        assert in_flight > 1 or taken <= len(found) + 1
    assert found == alone and taken == 20
    assert_no_page_is_lost(engine)
    assert list(answers(engine, [])) == []


def test_nothing_is_left_behind() -> None:
    engine = tiny_engine()
    iterator = answers(engine, requests(9), in_flight=4)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not engine.tick()
    assert_no_page_is_lost(engine)
    bad = [*requests(3), Request(prompt=[1] * 999)]
    with pytest.raises(UserError):
        list(answers(engine, bad, in_flight=2))
    assert not engine.tick()
