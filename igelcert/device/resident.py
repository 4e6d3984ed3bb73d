"""`rmagent run`: small and at rest. It holds one question for settings, and starts a child when there is work.

It wakes for: other settings at the proxy, the next instant on the agenda, a changed address or host name,
SIGHUP, the end of a child, the watchdog. The child is `rmagent sync --paced`; what it has to do and when next,
it knows from the tree. Imported here is only what a process that lives for years should hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time

from ..errors import Error, StorageError, TransportError
from . import agenda, files, schedule
from .log import Log
from .watch import Answer, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Resident", "live", "main"]

LOOK_SECONDS = 60.0  # between looks for what is missing: /wfs, the management identity
CHILD_LIMIT = 3_600.0  # a child that works for longer is ended: RSA-8192 keys take a minute each
CHILD_LEAST = (
    30.0  # between starts of children that only the agenda asks for, where runs leave it in the past
)
CHILD_SOON = 3.0  # the same, where they do not: a window for a renewal may be short
BACKOFF_FIRST, BACKOFF_LAST = 5.0, 300.0  # between tries of a proxy that is away
REFUSED_FIRST, REFUSED_LAST = 60.0, 3_600.0  # of one that does not know us
NETWORK_SETTLE = 3.0  # an interface that comes up says so several times
NETWORK_LEAST = 30.0
HELD_SECONDS = 5.0  # a question that was not refused by then is held
TURN_LATEST = 3_600  # seconds for which other settings may have to wait
ANSWER_GRACE = 60.0  # seconds beyond `wait` after which a proxy that has not answered is given up
RTMGRP = 0x1 | 0x10 | 0x100  # links, IPv4 and IPv6 addresses


class _Stop(BaseException):
    """SIGTERM or SIGINT."""


class Resident:
    """plan: see `residence.become_resident`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.dir = str(plan["agent_dir"])
        self._default_server = str(plan["server"])
        self._wait = int(plan["wait"])
        self._child_argv = [str(word) for word in plan["child"]]
        self._watch_network = bool(plan["watch_network"])
        self.log = Log("rmagent", screen=bool(plan["screen"]), level=str(plan["level"]))
        self._poll = select.poll()
        self._watch: Watch | None = None
        self._watch_deadline = 0.0
        self._asked_at = 0.0
        # the settings that we have, as we said when we asked: now, and when we were told of others
        self._asked_with = ""
        self._told_with: str | None = None
        self._vain = 0  # runs in a row after which we still had those settings
        self._next_watch = 0.0  # monotonic seconds from which on the proxy is asked
        self._failures = 0
        self._trouble = ""  # what was logged of the proxy last; said once
        self._child = 0
        self._child_fd = -1
        self._child_started = -CHILD_LEAST
        self._stuck = 0  # runs in a row that left their agenda in the past
        # devices whose clocks agree are not all to wake with the second
        self._fraction = _between(0.0, 1.0)
        self._want = "start"  # why a child is to be started; "" when there is no reason
        self._want_at = 0.0
        self._network: socket.socket | None = None
        self._name = -1
        self._notify = _Notifier()
        self._wake_read, self._wake_write = socket.socketpair()
        self._lock = -1
        self._starting = False  # between the start of a child and our note of it
        self._stopping = False

    # ---- life -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM; returns the exit status."""
        self._signals()
        try:
            self._settle_in()
            self.log.info("the resident agent is at work")
            while True:
                self._turn()
        except _Stop:
            self._notify.say("STOPPING=1")
            self._end_child()
            self.log.info("the resident agent ends")
            return 0

    def _signals(self) -> None:
        def stop(_number: int, _frame: object) -> None:
            again, self._stopping = self._stopping, True
            # once: a second one would cut the end short; a child that just starts would be left behind
            if not again and not self._starting:
                raise _Stop

        def hup(_number: int, _frame: object) -> None:
            self._ask_for("SIGHUP", now=True)
            self._next_watch, self._failures = 0.0, 0

        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, hup)
        self._poll.register(self._wake_read, select.POLLIN)

    def _settle_in(self) -> None:
        """Waits for the place of the identity, takes the lock, listens to the network."""
        if self._watch_network:
            self._listen_to_network()
        self._notify.say("READY=1\nSTATUS=waiting for /wfs")
        said = False
        while not self._take_lock(said):
            said = True
            self._sleep(LOOK_SECONDS)

    def _take_lock(self, said: bool) -> bool:
        """False while the place for it is not there; said: that was logged already."""
        try:
            if os.path.isdir(os.path.dirname(self.dir)):
                files.make_dir(self.dir, 0o700)
            options = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(os.path.join(self.dir, agenda.RUN_LOCK), options, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lock, 0)
            os.write(self._lock, str(os.getpid()).encode())
        except BlockingIOError:
            raise StorageError(
                "another resident agent runs for this device", hint="end it first, or leave it be"
            ) from None
        except (OSError, StorageError) as err:
            if not said:
                text = str(files.failure(err, "use", self.dir) if isinstance(err, OSError) else err)
                self.log.error(f"waiting: {text}")
            return False
        return True

    # ---- one turn -------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        if not self._child:
            self._start_what_is_due(now)
        if not self._child and not self._watch and now >= self._next_watch:
            self._open_watch()
        self._sleep(self._patience(time.monotonic()))

    def _start_what_is_due(self, now: float) -> None:
        moment = agenda.next_at(self.dir)
        if not self._want and moment is not None and moment + self._fraction <= time.time():
            # a run that leaves its agenda in the past (no room on the disk) does not make us spin
            least = CHILD_LEAST * 2 ** min(self._stuck, 6) if self._stuck else CHILD_SOON
            self._want, self._want_at = "agenda", max(now, self._child_started + least)
        if self._want and now >= self._want_at:
            self._start_child()

    def _patience(self, now: float) -> float:
        """Seconds until something has to be done without anybody asking."""
        ends = [self._notify.next_ping(now)]
        if self._child:
            ends.append(self._child_started + CHILD_LIMIT)
        else:
            if self._want:
                ends.append(self._want_at)
            elif (moment := agenda.next_at(self.dir)) is not None:
                # the clock may be set meanwhile: not longer than a quarter of an hour in one go
                ends.append(now + min(max(0.0, moment + self._fraction - time.time()), 900.0))
            ends.append(self._watch_deadline if self._watch else self._next_watch)
            if self._watch and self._trouble:
                ends.append(self._asked_at + HELD_SECONDS)
        return max(0.0, min(ends) - now)

    def _sleep(self, seconds: float) -> None:
        events = self._poll.poll(int(seconds * 1000) + 1)
        now = time.monotonic()
        self._notify.ping(now)
        for handle, _what in events:
            if handle == self._wake_read.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
            elif handle == self._child_fd:
                self._child_ended()
            elif self._network and handle == self._network.fileno():
                self._network_changed(now)
            elif handle == self._name:
                self._name_changed(now)
            elif self._watch and handle == self._watch.fileno():
                self._hear()
        if self._child and now > self._child_started + CHILD_LIMIT:
            self.log.error("the work takes too long and is ended")
            self._end_child()
        if self._watch and self._trouble and now >= self._asked_at + HELD_SECONDS:
            self._recovered()  # it holds our question
        if self._watch and now > self._watch_deadline:
            self._lost(TransportError("the proxy does not answer in time", link="timeout"))

    def _ask_for(self, why: str, *, now: bool = False, at: float = 0.0) -> None:
        moment = time.monotonic() if now else at
        self._want_at = min(self._want_at, moment) if self._want else moment
        self._want = self._want or why

    # ---- the proxy ------------------------------------------------------------------------------

    def _server(self) -> str:
        try:
            return str(json.loads(files.read(os.path.join(self.dir, "server.json")))["server"])
        except (Error, OSError, ValueError, KeyError, TypeError):
            return self._default_server

    def _open_watch(self) -> None:
        if not os.path.exists(os.path.join(self.dir, "cert.pem")):
            self._say_trouble("this device is not registered; waiting for rmagent register")
            self._next_watch = time.monotonic() + LOOK_SECONDS
            return
        if not schedule.clock_is_sane(int(time.time())):
            self._next_watch = time.monotonic() + agenda.CLOCK_SECONDS
            return
        try:
            self._watch = Watch(self._server(), self.dir)
            self._poll.register(self._watch, select.POLLIN)
            self._ask_watch()
        except (Error, OSError) as err:
            self._lost(err)

    def _ask_watch(self) -> None:
        assert self._watch is not None
        self._asked_with = agenda.tags(self.dir)
        self._watch.ask(self._asked_with, self._wait)
        self._asked_at = time.monotonic()
        self._watch_deadline = self._asked_at + self._wait + ANSWER_GRACE
        self._notify.say("STATUS=waiting for settings")

    def _close_watch(self) -> None:
        if self._watch:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._poll.unregister(self._watch)
            self._watch.close()
            self._watch = None

    def _lost(self, err: Exception) -> None:
        """The proxy cannot be asked: later, and later again, each device at its own time."""
        self._close_watch()
        kind = err.link if isinstance(err, TransportError) else ""
        # a proxy that ends its connections when it is restarted is no trouble yet
        if kind != "closed" or self._failures:
            self._say_trouble(f"{err}; going on with the stored settings")
        self._failures += 1
        wait = min(BACKOFF_FIRST * 2 ** min(self._failures - 1, 10), BACKOFF_LAST)
        self._next_watch = time.monotonic() + wait * _between(0.5, 1.5)

    def _hear(self) -> None:
        assert self._watch is not None
        try:
            answer = self._watch.receive()
        except Error as err:
            self._lost(err)
            return
        if answer is not None:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        now = time.monotonic()
        if answer.status not in {200, 304}:
            self._close_watch()
            self._failures += 1
            self._say_trouble(f"the proxy answers {answer.status} to the question for settings")
            wait = min(REFUSED_FIRST * 2 ** min(self._failures - 1, 10), REFUSED_LAST)
            self._next_watch = now + max(wait, answer.retry_after or 0) * _between(1.0, 1.25)
            return
        self._recovered()
        if answer.status == 200:
            # a proxy that tells many devices of a change at once says when each is to act on it
            turn = now + (min(answer.retry_after, TURN_LATEST) + self._fraction if answer.retry_after else 0)
            # a run that could not take them over (no room on the disk) does not make us spin
            self._vain = self._vain + 1 if self._asked_with == self._told_with else 0
            self._told_with = self._asked_with
            if self._vain:
                turn = max(turn, self._child_started + CHILD_LEAST * 2 ** min(self._vain - 1, 6))
            self._close_watch()
            self._next_watch = turn
            self._ask_for("other settings", at=turn)
            return
        if answer.headers.get("connection", "").lower() == "close":
            self._close_watch()
        # one that cannot hold a question says when to come back
        pause = answer.retry_after if answer.retry_after is not None else (0 if answer.held else LOOK_SECONDS)
        if pause or not self._watch:
            self._close_watch()
            self._next_watch = now + pause * _between(1.0, 1.25)
            return
        try:
            self._ask_watch()
        except Error as err:
            self._lost(err)

    def _recovered(self) -> None:
        if self._trouble:
            self.log.info("the proxy answers again")
            self._ask_for("the proxy is back", now=True)  # it has missed our reports
        self._failures, self._trouble = 0, ""

    def _say_trouble(self, text: str) -> None:
        """Once, not with each try."""
        if text != self._trouble:
            self.log.warning(text)
            self._notify.say(f"STATUS={text}")
            self._trouble = text

    # ---- the child ------------------------------------------------------------------------------

    def _start_child(self) -> None:
        why, self._want = self._want, ""
        if not os.path.exists(os.path.join(self.dir, "cert.pem")) and not os.path.exists(
            os.path.join(self.dir, "settings.json")
        ):
            return  # neither registered nor told anything: there is nothing to do
        self._close_watch()  # it would tell of settings that the child fetches just now
        self.log.debug(f"starting a run ({why})")
        self._notify.say("STATUS=at work")
        self._starting = True
        try:
            self._child = os.posix_spawn(
                self._child_argv[0],
                self._child_argv,
                {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                setsigmask=[],
                setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
            )
            self._child_fd = os.pidfd_open(self._child)
        except OSError as err:
            self.log.error(f"the work cannot be started: {err.strerror}")
            self._child = 0
            self._ask_for(why, at=time.monotonic() + LOOK_SECONDS)
            return
        finally:
            self._child_started = time.monotonic()
            self._starting = False
            if self._stopping:
                raise _Stop
        self._poll.register(self._child_fd, select.POLLIN)

    def _child_ended(self) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._poll.unregister(self._child_fd)
        os.close(self._child_fd)
        _, status = os.waitpid(self._child, 0)
        self._child, self._child_fd = 0, -1
        code = os.waitstatus_to_exitcode(status)
        self.log.debug(f"the run ended with {code}")
        moment = agenda.next_at(self.dir)
        self._stuck = self._stuck + 1 if moment is not None and moment <= time.time() else 0
        if code not in {0, 1, 75, 78}:
            self.log.error(f"the work ended with {code}; again in {LOOK_SECONDS:.0f} seconds")
            self._ask_for("the run was cut", at=time.monotonic() + LOOK_SECONDS)

    def _end_child(self) -> None:
        if not self._child:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGTERM)
            if not select.select([self._child_fd], [], [], 10.0)[0]:
                os.kill(self._child, signal.SIGKILL)
        self._child_ended()

    # ---- the network ----------------------------------------------------------------------------

    def _listen_to_network(self) -> None:
        try:
            self._network = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._network.bind((0, RTMGRP))
            self._poll.register(self._network, select.POLLIN)
        except OSError as err:
            self.log.debug(f"changes of addresses are seen later: {err.strerror}")
            self._network = None
        self._addresses = _addresses()
        with contextlib.suppress(OSError):
            # proc(5) has no word of it: a poll for POLLPRI wakes when the name changes, since Linux 3.1
            self._name = os.open("/proc/sys/kernel/hostname", os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._name, select.POLLPRI)

    def _name_changed(self, now: float) -> None:
        os.pread(self._name, 256, 0)
        self._ask_for("host name", at=max(now + NETWORK_SETTLE, self._child_started + NETWORK_LEAST))

    def _network_changed(self, now: float) -> None:
        """Looks whether an address is another one; router advertisements alone are none."""
        assert self._network is not None
        with contextlib.suppress(OSError):  # EAGAIN; ENOBUFS: more happened than fits
            while self._network.recv(65_536):
                pass
        seen = _addresses()
        if seen == self._addresses:
            return
        self._addresses = seen
        self._next_watch, self._failures = now + NETWORK_SETTLE, 0
        self._ask_for("addresses", at=max(now + NETWORK_SETTLE, self._child_started + NETWORK_LEAST))


def _addresses() -> str:
    """What the kernel says of addresses, without their lifetimes; only compared, never read."""
    found = []
    for path in ("/proc/net/fib_trie", "/proc/net/if_inet6"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found += sorted(
                    line for line in file if "host LOCAL" in line or "if_inet6" in path or "|--" in line
                )
        except OSError:
            continue
    return str(hash("".join(found)))


def _between(low: float, high: float) -> float:
    """Jitter; the random module would cost more memory than it is worth here."""
    return low + (high - low) * int.from_bytes(os.urandom(4), "big") / (1 << 32)


class _Notifier:
    """sd_notify(3): says what we do, and that we live."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        every = os.environ.pop("WATCHDOG_USEC", "")
        mine = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = int(every) / 2_000_000 if every.isdecimal() and mine else 0.0
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), self._address)

    def next_ping(self, now: float) -> float:
        return self._last + self._every if self._every else now + 3_600.0

    def ping(self, now: float) -> None:
        if self._every and now >= self._last + self._every * 0.9:
            self.say("WATCHDOG=1")
            self._last = now


def live(plan: dict[str, Any]) -> int:
    """As the resident agent until SIGTERM; the exit status. plan: see `residence.become_resident`."""
    gc.set_threshold(700)  # as Python has it; what starts us may have put it up
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("rmagent")
    resident = Resident(plan)
    try:
        return resident.run()
    except Error as err:
        resident.log.error(str(err))
        resident.log.hint(err.hint)
        return 1


def main() -> None:
    """argv[1]: the plan as JSON."""
    sys.exit(live(json.loads(sys.argv[1])))
