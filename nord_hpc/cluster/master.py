"""The master's loop: events from the transport to the coordinator, its actions to the journal and to the ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.events import Action, DropWeights, End, Expel, Record, Send, StopRequested, Tick
from nord_hpc.interfaces import Transport
from nord_hpc.store.journal import Appendable
from nord_hpc.trial import Json

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
PROGRESS_SECONDS = 10.0


class MasterMeter:
    """CPU seconds that the master spends on events and actions: all but waiting for messages."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.thread_time()

    def stop(self) -> None:
        self.seconds += time.thread_time() - self._started


def run_master(
    coordinator: Coordinator,
    *,
    transport: Transport,
    journal: Appendable,
    meter: MasterMeter,
    drop_weights: Callable[[int], None],
    stop_reason: Callable[[], str | None],
    on_tick: Callable[[], None] = lambda: None,
) -> End:
    """Run a search to its end.

    Records are durable before any message that follows from them leaves: one fsync for each round of events.

    Args:
        drop_weights: removes the kept weights of a trial.
        stop_reason: why the search should stop now, or None.
        on_tick: called a few times a second, for progress and snapshots.
    """
    next_tick = transport.now()
    next_progress = next_tick + PROGRESS_SECONDS
    while True:
        meter.start()
        at = transport.now()
        reason = stop_reason()
        if reason is not None:
            coordinator.handle(StopRequested(reason), at=at)
        if at >= next_tick:
            next_tick = at + TICK_SECONDS
            coordinator.handle(Tick(), at=at)
            on_tick()
        if at >= next_progress:
            next_progress = at + PROGRESS_SECONDS
            journal.append(_progress(coordinator, journal, meter, at=at))
        end = _carry_out(_step(coordinator, journal, at=at), journal, transport, drop_weights)
        meter.stop()
        if end is not None:
            journal.append(_progress(coordinator, journal, meter, at=at))
            journal.sync()
            return end
        for _, message in transport.receive(TICK_SECONDS):
            meter.start()
            coordinator.handle(message, at=transport.now())
            meter.stop()


def _progress(coordinator: Coordinator, journal: Appendable, meter: MasterMeter, *, at: float) -> dict[str, Json]:
    own = {"master_seconds": meter.seconds, "fsyncs": journal.n_syncs}
    return {"kind": "progress", **own, **coordinator.progress(), "at": at}


def _step(coordinator: Coordinator, journal: Appendable, *, at: float) -> list[Action]:
    """One step; if it raises, as a strategy may, the results that came in before are saved all the same."""
    try:
        return coordinator.step(at=at)
    except BaseException:
        for action in coordinator.take_actions():
            if isinstance(action, Record):
                journal.append(action.record)
        journal.sync()
        raise


def _carry_out(
    actions: list[Action], journal: Appendable, transport: Transport, drop_weights: Callable[[int], None]
) -> End | None:
    later: list[Send | DropWeights] = []
    end: End | None = None
    for action in actions:
        match action:
            case Record():
                journal.append(action.record)
            case Send() | DropWeights():
                later.append(action)
            case Expel():
                transport.expel(action.rank)
            case End():
                end = action
    journal.sync()
    for item in later:
        if isinstance(item, Send):
            transport.send(item.rank, item.message)
        else:
            drop_weights(item.number)
    return end
