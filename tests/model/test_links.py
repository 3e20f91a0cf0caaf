"""Links of decoding graphs: distributions over the vertices behind, and their way through files."""

from __future__ import annotations

import torch
from tests.tiny import tiny_encoder_decoder_config

from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.links import Links


def links() -> Links:
    torch.manual_seed(0)
    return Links(12, 3).double()


def test_rows_are_distributions_over_what_lies_behind() -> None:
    hidden = torch.randn(2, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = links()(hidden, torch.tensor([6, 4])).detach()
    assert found.shape == (2, 6, 6) and found.dtype == torch.float32
    for graph, count in enumerate((6, 4)):
        for vertex in range(6):
            behind = torch.arange(6) > vertex
            behind &= torch.arange(6) < count
            assert torch.equal(found[graph, vertex] > -torch.inf, behind)
            if vertex < count - 1:
                assert abs(float(found[graph, vertex].exp().sum()) - 1.0) < 1e-6


def test_heads_are_mixed_by_the_vertex_s_gate() -> None:
    """The formula of the paper, written out for one vertex."""
    module = links()
    hidden = torch.randn(1, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = module(hidden, torch.tensor([5]))[0, 1].exp()
    expected = torch.zeros(5, dtype=torch.float64)
    gates = module.gate(hidden[0, 1]).softmax(0)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        query = module.query(hidden[0, 1])[part]
        scores = torch.stack([module.key(hidden[0, i])[part] @ query for i in (2, 3, 4)]) / 2.0
        expected[2:] += gates[head] * scores.softmax(0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_network_with_links_has_their_gradient() -> None:
    config = tiny_encoder_decoder_config(link_heads=2, vertices_per_token=3)
    network = EncoderDecoder.random(config, seed=0).requires_grad_(True)
    hidden = torch.randn(1, 4, config.width, generator=torch.Generator().manual_seed(1))
    network.links(hidden, torch.tensor([4]))[0, 0, 1:].sum().backward()
    assert all(parameter.grad is not None for parameter in network.link_head.parameters())
    assert not hasattr(EncoderDecoder.random(tiny_encoder_decoder_config(), seed=0), "link_head")
