"""The watch over the next process on this host, on real processes that are stopped, ended and let go on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from nord_hpc.cluster.neighbours import LOOK_SECONDS, STOPPED_SECONDS, NeighbourWatch
from nord_hpc.cluster.processes import Process, find_process, own_process, process_here

Start = Callable[[], Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that sleeps."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> Process:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return process_here(started[-1].pid)

    yield begin
    for process in started:
        process.kill()
        process.wait(10)


def _signal(process: Process, number: signal.Signals) -> None:
    found = find_process(process)
    assert found is not None
    found.send_signal(number)
    wanted = psutil.STATUS_STOPPED
    ends = time.monotonic() + 10
    while (found.status() == wanted) != (number == signal.SIGSTOP):
        assert time.monotonic() < ends
        time.sleep(0.01)


def _ended_by(watch: NeighbourWatch, *, begins: float, seconds: float) -> tuple[Process | None, float]:
    """The first process that is ended within so many seconds of the watch's own clock, and when."""
    now = begins
    while now <= begins + seconds:
        ended = watch.look(now)
        if ended is not None:
            return ended, now - begins
        now += LOOK_SECONDS
    return None, seconds


def test_a_stopped_neighbour_is_ended_and_the_one_after_it_is_watched(start: Start) -> None:
    one, two, elsewhere = start(), start(), Process("elsewhere", 1, 1)
    watch = NeighbourWatch([two, own_process(), elsewhere, one], 1)
    assert _ended_by(watch, begins=0.0, seconds=10.0) == (None, 10.0)
    _signal(one, signal.SIGSTOP)
    assert _ended_by(watch, begins=20.0, seconds=10.0) == (one, STOPPED_SECONDS)
    assert find_process(one) is None or find_process(one).status() == psutil.STATUS_ZOMBIE  # type: ignore[union-attr]
    _signal(two, signal.SIGSTOP)
    assert _ended_by(watch, begins=40.0, seconds=10.0) == (two, STOPPED_SECONDS)
    assert _ended_by(watch, begins=60.0, seconds=10.0) == (None, 10.0)


def test_one_that_goes_on_again_is_left_alone(start: Start) -> None:
    one = start()
    watch = NeighbourWatch([own_process(), one], 0)
    for begins in (0.0, 100.0):
        _signal(one, signal.SIGSTOP)
        assert _ended_by(watch, begins=begins, seconds=STOPPED_SECONDS - LOOK_SECONDS)[0] is None
        _signal(one, signal.SIGCONT)
        assert _ended_by(watch, begins=begins + STOPPED_SECONDS, seconds=10.0)[0] is None


def test_a_watch_that_was_stopped_itself_begins_anew(start: Start) -> None:
    """A batch system stops all processes of a job, and lets them go on one after the other."""
    one = start()
    watch = NeighbourWatch([own_process(), one], 0)
    _signal(one, signal.SIGSTOP)
    assert watch.look(0.0) is None
    assert watch.look(1000.0) is None
    _signal(one, signal.SIGCONT)
    assert _ended_by(watch, begins=1000.5, seconds=10.0)[0] is None


def test_another_process_with_the_same_id_is_left_alone(start: Start) -> None:
    one = start()
    _signal(one, signal.SIGSTOP)
    watch = NeighbourWatch([own_process(), one._replace(started=one.started - 1)], 0)
    assert _ended_by(watch, begins=0.0, seconds=10.0) == (None, 10.0)
