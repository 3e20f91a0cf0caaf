"""CUDA graphs: what was once launched on a GPU, launched again by one call.

All graphs take their memory from one pool, so a graph's output holds until another is repeated, and
their number costs little. Not recorded: work that waits for the GPU or copies from the host, such
as a mixture of experts' count of tokens an expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraphs:
    """Records for one device; implements `engine.static_passes.Recorder`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Runs twice unrecorded, in which kernels are compiled and libraries take their memory."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                output = run()

        def repeat() -> torch.Tensor:
            graph.replay()
            return output

        return repeat
