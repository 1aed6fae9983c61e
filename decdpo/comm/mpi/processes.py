"""Processes of the job as their hosts know them: told apart, killed, and cut off."""

import array
import fcntl
import ipaddress
import os
import platform
import signal
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SIOCGIFCONF = 0x8912
_IFREQ = 40
"""Bytes of an interface's record: 16 of its name, and an address whose IPv4 part is at 20."""
_INTERFACES = 256
"""As many as are looked at."""


class Process(NamedTuple):
    """One process of the job: a word that only processes of its host share, its pid and its start.

    The start tells it from a later process with the same pid. addresses : of its host.
    """

    host: str
    pid: int
    start: str
    addresses: Sequence[str] = ()

    @classmethod
    def this(cls) -> "Process":
        """Return this process."""
        return cls(_host(), os.getpid(), _start_of(os.getpid()), addresses())

    def kill(self) -> bool:
        """Kill it, if it is of this host and still there; say whether it is of this host."""
        if self.host != _host():
            return False
        if self.start == _start_of(self.pid):
            with suppress(ProcessLookupError):  # It may end at this very moment.
                os.kill(self.pid, signal.SIGKILL)
        return True


def addresses() -> list[str]:
    """Return the IP addresses by which others may reach this host; none where Linux is not."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        room = array.array("B", bytes(_IFREQ * _INTERFACES))
        request = struct.pack("iL", len(room), room.buffer_info()[0])
        used, _ = struct.unpack("iL", fcntl.ioctl(asked.fileno(), _SIOCGIFCONF, request))
        for start in range(0, used, _IFREQ):
            found.append(ipaddress.ip_address(room[start + 20 : start + 24].tobytes()))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.append(ipaddress.ip_address(bytes.fromhex(line.split()[0])))
    return [str(address) for address in found if not address.is_loopback]


def cut_off(theirs: Iterable[str]) -> None:
    """Shut this process's connections to a host with the addresses ``theirs``.

    MPI then takes the processes there for lost, and tells the others.
    """
    away = set(theirs) - set(addresses())
    for descriptor in map(int, os.listdir("/proc/self/fd") if away else ()):
        # One is gone, that of the list. No file may be opened a second time here: to close it would
        # give up the locks on it.
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    peer = ipaddress.ip_address(connection.getpeername()[0])
                    if str(getattr(peer, "ipv4_mapped", None) or peer) in away:
                        connection.shutdown(socket.SHUT_RDWR)


def _host() -> str:
    """Return a word that processes share which see each other's pids."""
    words = [platform.node()]
    for path, read in (
        ("/proc/sys/kernel/random/boot_id", lambda p: Path(p).read_text().strip()),
        ("/proc/self/ns/pid", os.readlink),
    ):
        try:
            words.append(read(path))
        except OSError:
            continue
    return " ".join(words)


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since the host did; empty if it is gone."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return facts.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
