"""What a node tells the public system unasked: events, lines of workloads, reports of calls."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nex.errors import MessageError, UnreachableError, UsageError
from nex.processes import Exit
from nex.protocol import events, subjects
from nex.protocol.agent import CallReport, LogBatch
from nex.protocol.logs import LogRecord, format_level, parse_level
from nex.telemetry.logs import Log
from nex.transport.connection import Connection

__all__ = ["Publisher", "Subject"]

_log = Log("node.publisher")
_FAILURES = 5
"""Failures of one trigger and report that become events of their own; the rest are counted in one more."""
_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True)
class Subject:
    """The workload that something is said about."""

    id: str
    namespace: str
    name: str


class Publisher:
    """Publishes in the name of a node. What cannot be sent is dropped and said once until something can."""

    def __init__(self, connection: Connection, node_id: str) -> None:
        self._connection = connection
        self._node_id = node_id
        self._lost = 0

    def node_event(self, event_type: str, data: dict[str, Any]) -> None:
        """An event of the node itself."""
        self._event(subjects.SYSTEM, event_type, self._node_id, data)

    def deployed(self, workload: Subject) -> None:
        """The workload runs."""
        data = events.workload_deployed(name=workload.name, workload_id=workload.id)
        self._workload_event(workload, events.WORKLOAD_DEPLOYED, data)
        self.log(workload, "INFO", f"Workload {workload.name} deployed")

    def undeployed(self, workload: Subject, how: Exit, reason: str = "") -> None:
        """The workload runs no more; ``reason`` is the limit that ended it, in words."""
        message = f"Exited workload: {workload.name}; vm: {workload.id}; status: {how.code}"
        if reason:
            message = f"{message}; {reason}"
        data = events.workload_undeployed(
            name=workload.name, workload_id=workload.id, code=how.code, message=message, signal=how.signal
        )
        self._workload_event(workload, events.WORKLOAD_UNDEPLOYED, data)
        if reason:
            self.log(workload, "ERROR", f"Workload {workload.name} was ended: {reason}")
        else:
            self.log(workload, "INFO", f"Workload {workload.name} stopped ({how})")

    def output(self, workload: Subject, batch: LogBatch) -> None:
        """Lines that a workload wrote."""
        if batch.dropped > 0:
            self.log(workload, "WARN", f"{batch.dropped} lines were dropped: too many at a time")
        for line in batch.lines:
            self.log(workload, line.level, line.text)

    def log(self, workload: Subject, level: str, text: str) -> None:
        """One line of a workload. A level that is none becomes INFO."""
        try:
            spelled = format_level(parse_level(level))
        except MessageError:
            spelled = "INFO"
        subject = subjects.log(workload.namespace, self._node_id, workload.name, workload.id)
        self._send(subject, LogRecord(text=text, level=spelled, id=workload.id).encode())

    def calls(self, workload: Subject, report: CallReport) -> None:
        """What happened on a trigger: successes in one event, failures one by one up to a few, then counted."""
        name, namespace, trigger = workload.name, workload.namespace, report.trigger
        if report.succeeded > 0:
            data = events.function_exec_succeeded(
                name=name,
                trigger=trigger,
                namespace=namespace,
                elapsed_ns=report.elapsed_ns,
                count=report.succeeded,
            )
            self._event(namespace, events.FUNCTION_EXEC_SUCCEEDED, self._node_id, data)
            times = f" in {report.succeeded} calls" if report.succeeded > 1 else ""
            self.log(workload, "DEBUG", f"Function {name} execution succeeded ({report.elapsed_ns}ns{times})")
        texts = [text[:_TEXT_CHARS] for text in report.failures[: min(_FAILURES, max(report.failed, 0))]]
        for text in texts:
            self._failed(workload, trigger, text, 1)
        if (more := report.failed - len(texts)) > 0:
            self._failed(workload, trigger, texts[-1] if texts else "the function failed", more)

    def _failed(self, workload: Subject, trigger: str, error: str, count: int) -> None:
        data = events.function_exec_failed(
            name=workload.name, trigger=trigger, namespace=workload.namespace, error=error, count=count
        )
        self._event(workload.namespace, events.FUNCTION_EXEC_FAILED, self._node_id, data)
        times = f"{count} times: " if count > 1 else ""
        self.log(workload, "ERROR", f"Function execution failed: {times}{error}")

    def _workload_event(self, workload: Subject, event_type: str, data: dict[str, Any]) -> None:
        self._event(workload.namespace, event_type, f"{self._node_id}-{workload.id}", data)

    def _event(self, namespace: str, event_type: str, source: str, data: dict[str, Any]) -> None:
        event = events.CloudEvent.create(event_type, source, data, time_ns=time.time_ns())
        self._send(subjects.event(namespace, event_type), event.encode())

    def _send(self, subject: str, payload: bytes) -> None:
        try:
            self._connection.publish_soon(subject, payload)
        except (UnreachableError, UsageError) as error:
            if not self._lost:
                _log.warn("publish_failed", f"events and lines of workloads are lost: {error}")
            self._lost += 1
        else:
            if self._lost:
                _log.warn("publish_resumed", "events and lines of workloads pass again", lost=self._lost)
                self._lost = 0
