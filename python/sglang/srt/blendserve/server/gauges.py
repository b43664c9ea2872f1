"""Prometheus gauges of the batch service, in the registry that SGLang's ``/metrics`` shows."""

from __future__ import annotations

from sglang.srt.blendserve.server.report import Report

_PREFIX = "blendserve:batch"


class Gauges:
    """The gauges; make one only after SGLang has set up its metrics (``--enable-metrics``)."""

    def __init__(self) -> None:
        # Here and not above: SGLang chooses prometheus_client's mode before its first import.
        from prometheus_client import Gauge

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{_PREFIX}_{name}", text, labels, multiprocess_mode="livesum")

        self._batches = gauge("batches", "Batches by status.", "status")
        self._requests = gauge("open_requests", "Requests of open batches by state.", "state")
        self._slots = gauge("slots", "Requests that may be in the engine at once.")
        self._waiting = gauge("waiting_batches", "Open batches whose directory takes no data.")
        self._rate = gauge("requests_per_second", "Requests answered, over the last minute.")
        self._tokens = gauge(
            "tokens_per_second", "Tokens of answered requests, over the last minute.", "kind"
        )

    def report(self, report: Report) -> None:
        """Set all gauges."""
        for status, number in report.batches.items():
            self._batches.labels(status).set(number)
        for state, number in report.requests.items():
            self._requests.labels(state).set(number)
        self._slots.set(report.slots)
        self._waiting.set(report.waiting)
        self._rate.set(report.rates.requests)
        self._tokens.labels("input").set(report.rates.input_tokens)
        self._tokens.labels("output").set(report.rates.output_tokens)
