"""What the server counts, for Prometheus. No label is anything that a caller may choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .tally import Tally

if TYPE_CHECKING:
    from .job import Job
    from .service import Health

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_ANSWERS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120)
_STATES = ("queued", "running", "paused")


class Metrics(Tally):
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
        self._rate = Gauge("avila_steps_per_second", "Model calls a second, by the last one.", registry=self.registry)
        self._pictures = Counter("avila_pictures", "Pictures that were finished.", registry=self.registry)
        self._rejected = Counter(
            "avila_calls_rejected", "Calls that were refused, by reason.", ["reason"], registry=self.registry
        )
        self._restarts = Counter(
            "avila_worker_restarts", "Times the worker was started again, by reason.", ["why"], registry=self.registry
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

    def accepted(self, job: Job) -> None:
        """A job was committed."""
        self._accepted.labels(job.dialect).inc()

    def rejected(self, reason: str) -> None:
        """A call was refused. reason: one of few words."""
        self._rejected.labels(reason).inc()

    def started(self, job: Job, waited: float) -> None:
        """A job's first picture was begun, so many seconds after it was accepted."""
        self._waited.observe(max(0.0, waited))

    def ended(self, job: Job, ran: float | None) -> None:
        """A job ended, so many seconds after it was begun; None where it never was."""
        self._ended.labels(job.state, job.dialect).inc()
        if ran is not None:
            self._ran.observe(max(0.0, ran))

    def called(self, job: Job, seconds: float) -> None:
        """One call of the model was made."""
        self._steps.inc()
        if seconds > 0:
            self._rate.set(1 / seconds)

    def drawn(self, job: Job) -> None:
        """A picture is finished."""
        self._pictures.inc()

    def restarted(self, why: str) -> None:
        """The worker process was started again."""
        self._restarts.labels(why).inc()

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
