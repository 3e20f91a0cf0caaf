"""What /metrics tells, in Prometheus's text format."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from typing import TYPE_CHECKING

from anyorder.server.worker import Ticket

if TYPE_CHECKING:
    from anyorder.server.service import Service

_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        lines, sum_ = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self.counts, strict=True):
            sum_ += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {sum_}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {sum_}"]


class Metrics:
    """Counters and histograms of a server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._methods: Counter[str] = Counter()
        self._first_text = _Histogram()
        self._queue = _Histogram()
        self._whole = _Histogram()

    def count_end(self, reason: str) -> None:
        """A request ended for this reason."""
        with self._lock:
            self._ends[reason] += 1

    def count_ticket(self, ticket: Ticket) -> None:
        """What a request that is over cost."""
        handle = ticket.handle
        completion = handle.completion
        with self._lock:
            self._methods[handle.prepared.request.method] += 1
            self._counters["forward_passes"] += handle.num_passes
            self._counters["preemptions"] += handle.num_preemptions
            self._counters["prompt_tokens"] += len(handle.prepared.given)
            self._counters["cached_prompt_tokens"] += handle.num_cached_tokens
            self._counters["generated_tokens"] += sum(len(c.tokens) for c in handle.choices)
            if ticket.first_text_at is not None:
                self._first_text.add(ticket.first_text_at - handle.submitted_at)
            if completion is None:
                self._ends["abort" if handle.error is None else "error"] += 1
                return
            for choice in completion.choices:
                self._ends[choice.finish_reason] += 1
            report = completion.report
            self._queue.add(report.queue_seconds)
            self._whole.add(report.queue_seconds + report.prefill_seconds + report.decode_seconds)

    def text(self, service: Service) -> str:
        """The page."""
        handles = [ticket.handle for ticket in service.worker.tickets]
        num_waiting = sum(handle.admitted_at is None for handle in handles)
        gauges = {
            "requests_running": len(handles) - num_waiting,
            "requests_waiting": num_waiting,
            "answers_in_flight": service.num_in_flight,
        }
        lines: list[str] = []
        for name, value in gauges.items():
            lines += [f"# TYPE anyorder_{name} gauge", f"anyorder_{name} {value}"]
        lines.append("# TYPE anyorder_kv_cache_usage_ratio gauge")
        for role, parts in service.engine.roles.items():
            used = 1 - parts.store.num_available / parts.store.num_pages
            lines.append(f'anyorder_kv_cache_usage_ratio{{role="{role}"}} {used:.6f}')
        with self._lock:
            counters = {"ticks": service.worker.num_ticks, **self._counters}
            for name, count in counters.items():
                lines += [f"# TYPE anyorder_{name}_total counter", f"anyorder_{name}_total {count}"]
            for name, label, counts in (
                ("choices", "finish_reason", self._ends),
                ("requests", "method", self._methods),
            ):
                lines.append(f"# TYPE anyorder_{name}_total counter")
                lines += [
                    f'anyorder_{name}_total{{{label}="{value}"}} {count}'
                    for value, count in sorted(counts.items())
                ]
            lines += self._first_text.lines("anyorder_time_to_first_token_seconds")
            lines += self._queue.lines("anyorder_queue_time_seconds")
            lines += self._whole.lines("anyorder_request_time_seconds")
        return "\n".join(lines) + "\n"
