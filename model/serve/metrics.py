"""What /metrics tells, in Prometheus' text format."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.serve.batcher import Batcher

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics(Collector):
    """Counts of requests, and of what the batchers do, who count for themselves."""

    def __init__(self, batchers: Mapping[str, Batcher]) -> None:
        self.batchers = batchers
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.requests = Counter(
            "velocity_requests",
            "Requests that were answered.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "velocity_request_seconds",
            "Seconds from a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "velocity_first_token_seconds",
            "Seconds from when a request was read to the first token of its texts.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def collect(self) -> Iterator[Metric]:
        """What the batchers count, by model."""
        running = GaugeMetricFamily(
            "velocity_running_texts", "Texts that are being written.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "velocity_waiting_texts", "Texts that wait for a place.", labels=["model"]
        )
        steps = CounterMetricFamily(
            "velocity_steps", "Steps: one token of every running text.", labels=["model"]
        )
        read = CounterMetricFamily(
            "velocity_prompt_tokens", "Tokens of prompts that were read.", labels=["model"]
        )
        written = CounterMetricFamily(
            "velocity_written_tokens", "Tokens that were written.", labels=["model"]
        )
        for name, batcher in self.batchers.items():
            running.add_metric([name], batcher.num_running)
            waiting.add_metric([name], batcher.num_waiting)
            steps.add_metric([name], batcher.num_steps)
            read.add_metric([name], batcher.num_prompt_tokens)
            written.add_metric([name], batcher.num_written_tokens)
        yield from (running, waiting, steps, read, written)

    def show(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
