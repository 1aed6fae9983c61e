"""Processes of the job as their hosts know them: told apart, killed, and cut off."""

import array
import fcntl
import ipaddress
import os
import platform
import signal
import socket
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

    @property
    def near(self) -> bool:
        """Whether it is of this host."""
        return self.host == _host()

    def kill(self) -> bool:
        """Kill it, if it is of this host and still there; say whether it is of this host."""
        if not self.near:
            return False
        if self.start == _start_of(self.pid):
            with suppress(ProcessLookupError):  # It may end at this very moment.
                os.kill(self.pid, signal.SIGKILL)
        return True


def addresses() -> list[str]:
    """Return the IP addresses by which others may reach this host."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        room = array.array("B", bytes(_IFREQ * _INTERFACES))
        request = struct.pack("iL", len(room), room.buffer_info()[0])
        used, _ = struct.unpack("iL", fcntl.ioctl(asked.fileno(), _SIOCGIFCONF, request))
        for start in range(0, used, _IFREQ):
            found.append(ipaddress.ip_address(room[start + 20 : start + 24].tobytes()))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.append(ipaddress.ip_address(bytes.fromhex(line.split()[0])))
    return [str(address) for address in found if not address.is_loopback]


def cut_off(theirs: Iterable[str]) -> int:
    """Shut this process's connections to a host with the addresses ``theirs``; return how many.

    MPI then takes the processes there for lost, and tells the others.
    """
    away = set(theirs) - set(addresses())
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # It is no socket, or it was what has listed the others.
            continue
        with connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            with suppress(OSError):  # It is connected to nobody.
                peer = ipaddress.ip_address(connection.getpeername()[0])
                if str(getattr(peer, "ipv4_mapped", None) or peer) in away:
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


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
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
