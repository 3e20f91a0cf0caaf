"""Bodies made from the server's own OpenAPI, valid and not: never a status of 500 or above."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from tests.server.conftest import Live


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_examples", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_no_body_breaks_the_server(live: Live, num_examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    num = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = [schemathesis.GenerationMode.POSITIVE]
        modes += [schemathesis.GenerationMode.NEGATIVE] * (operation.method == "post")
        for mode in modes:

            @hypothesis.settings(
                max_examples=num_examples,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                nonlocal num
                num += 1
                answer = case.call(timeout=60)
                assert answer.status_code < 500, (case, answer.text)

            ask()
    assert num > 10 * num_examples
    assert live.http.get("/health").json()["status"] == "ok"
