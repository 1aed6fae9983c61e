"""What signals do to a training command at each stage."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from limits import HANG, await_that

from decdpo import signals as module
from decdpo.signals import Interrupted, Signals, Watch


class Run:
    """Notes what signals ask of it."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended: list[int] = []
        self.killed = 0
        self.told = 0
        self.watch = Watch(
            self._ask, lambda: "round 7 is saved", self._tell, True, self._end, self._kill
        )

    def _ask(self) -> None:
        self.asked += 1

    def _end(self, code: int) -> NoReturn:
        self.ended.append(code)
        raise OSError  # the thread ends here, in place of the process

    def _tell(self) -> None:
        self.told += 1

    def _kill(self) -> None:
        self.killed += 1


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Signals]:
    """Listen, with the handlers that a shell's foreground process has."""
    before = {n: signal.getsignal(n) for n in (*module.ASK, *module.END)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    monkeypatch.setattr(module, "TWICE", 0.0)
    with Signals() as signals:
        yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int, until: Callable[[], Any]) -> None:
    """Send a signal to this process, and wait until it has had its effect."""
    os.kill(os.getpid(), number)
    await_that(until, f"the effect of signal {number}")


@pytest.mark.parametrize("number", [*module.END])
def test_before_the_first_round_it_ends_at_once(listening: Signals, number: int) -> None:
    with pytest.raises(Interrupted, match="before the first round; nothing is lost") as caught:
        os.kill(os.getpid(), number)
        time.sleep(HANG)
    assert caught.value.code == 128 + number and signal.Signals(number).name in str(caught.value)


def test_usr1_before_the_first_round_is_kept_for_its_end(listening: Signals) -> None:
    run = Run()
    send(signal.SIGUSR1, lambda: listening.asked == "SIGUSR1")
    listening.watch(run.watch)
    assert run.asked == 1 and not run.ended


@pytest.mark.parametrize("number", [*module.ASK])
def test_the_first_asks_for_a_stop_and_says_so(
    listening: Signals, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    listening.watch(run.watch)
    send(number, lambda: run.asked)
    time.sleep(0.05)
    name = signal.Signals(number).name
    assert listening.asked == name and not run.ended
    assert f"decdpo: {name}: stopping when this round is saved" in capfd.readouterr().err


def test_a_second_one_ends_it_with_a_line(
    listening: Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    listening.watch(run.watch)
    send(signal.SIGUSR1, lambda: run.asked)
    send(signal.SIGUSR1, lambda: run.asked == 2)  # job scripts repeat it
    send(signal.SIGTERM, lambda: run.asked == 3)
    assert not run.ended
    send(signal.SIGINT, lambda: run.ended)
    assert run.ended == [130]
    assert "ended by SIGINT; round 7 is saved" in capfd.readouterr().err


def test_a_quit_ends_it_with_a_line(listening: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run()
    listening.watch(run.watch)
    send(signal.SIGQUIT, lambda: run.ended)
    assert run.ended == [131] and "ended by SIGQUIT; round 7" in capfd.readouterr().err


def test_one_that_launchers_pass_on_twice_is_one(
    listening: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TWICE", 60.0)
    run = Run()
    listening.watch(run.watch)
    send(signal.SIGTERM, lambda: run.asked == 1)
    send(signal.SIGTERM, lambda: run.asked == 2)
    assert not run.ended


def test_the_kill_of_open_mpi_is_known_by_what_it_sends_before(
    listening: Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    listening.watch(run.watch)
    os.kill(os.getpid(), signal.SIGCONT)
    time.sleep(0.05)
    send(signal.SIGTERM, lambda: run.asked and run.killed)
    time.sleep(module.LEFT + 0.1)
    said = capfd.readouterr().err
    assert said.count("ended by the launcher") == 1 and "round 7 is saved" in said


def test_after_the_rounds_the_first_is_harmless_and_silent(
    listening: Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    listening.watch(run.watch)
    run.watch.over = True
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert (run.asked, run.ended, capfd.readouterr().err) == (0, [], "")


def test_what_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_every_handler_is_put_back(listening: Signals) -> None:
    inner = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != inner
    assert signal.getsignal(signal.SIGTERM) == inner
