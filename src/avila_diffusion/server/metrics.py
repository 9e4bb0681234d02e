"""What the server counts, for Prometheus. No label is anything that a caller may choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from .service import Health

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_ANSWERS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120)
_STATES = ("queued", "running", "paused")


class Metrics:
    """Counters of one server, in a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._accepted = Counter(
            "avila_jobs_accepted",
            "Jobs that were taken, by the dialect they came in.",
            ["dialect"],
            registry=self.registry,
        )
        self._ended = Counter(
            "avila_jobs_ended",
            "Jobs that have ended, by state and dialect.",
            ["state", "dialect"],
            registry=self.registry,
        )
        self._waited = Histogram(
            "avila_job_queue_seconds", "How long jobs waited.", buckets=_SECONDS, registry=self.registry
        )
        self._ran = Histogram("avila_job_run_seconds", "How long jobs ran.", buckets=_SECONDS, registry=self.registry)
        self._steps = Counter("avila_model_calls", "Model calls that were made.", registry=self.registry)
        self._rate = Gauge(
            "avila_steps_per_second", "Model calls a second, of the job that ran last.", registry=self.registry
        )
        self._pictures = Counter("avila_pictures", "Pictures that were finished.", registry=self.registry)
        self._rejected = Counter(
            "avila_calls_rejected", "Calls that were refused, by reason.", ["reason"], registry=self.registry
        )
        self._restarts = Counter(
            "avila_worker_restarts", "Times the worker had to be started anew.", registry=self.registry
        )
        self._answers = Counter(
            "avila_http_answers", "Answers, by route and status.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "avila_http_seconds", "How long answers took.", ["route"], buckets=_ANSWERS, registry=self.registry
        )
        self._now = Gauge("avila_jobs", "Jobs that are live now, by state.", ["state"], registry=self.registry)
        self._ready = Gauge("avila_ready", "1 where the server can draw.", registry=self.registry)
        self._memory = Gauge("avila_worker_memory_bytes", "What the worker holds.", registry=self.registry)

    def accepted(self, dialect: str) -> None:
        """A job was taken."""
        self._accepted.labels(dialect).inc()

    def ended(self, state: str, dialect: str, waited: float | None, ran: float | None) -> None:
        """A job has ended. waited, ran: seconds, None where it did not."""
        self._ended.labels(state, dialect).inc()
        if waited is not None:
            self._waited.observe(max(0.0, waited))
        if ran is not None:
            self._ran.observe(max(0.0, ran))

    def stepped(self, calls: int, seconds: float) -> None:
        """So many model calls were made, in so many seconds."""
        self._steps.inc(max(0, calls))
        if seconds > 0:
            self._rate.set(calls / seconds)

    def picture(self) -> None:
        """A picture was finished."""
        self._pictures.inc()

    def rejected(self, reason: str) -> None:
        """A call was refused. reason: one of few words."""
        self._rejected.labels(reason).inc()

    def restarted(self) -> None:
        """The worker was started anew."""
        self._restarts.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A call was answered. route: the template of its path. status: 0 where nobody waited for it."""
        self._answers.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def exposition(self, health: Health) -> bytes:
        """Everything, as Prometheus reads it."""
        for state in _STATES:
            self._now.labels(state).set(getattr(health, state))
        self._ready.set(health.ready)
        self._memory.set(health.worker_memory or 0)
        return generate_latest(self.registry)
