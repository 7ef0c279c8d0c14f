"""Who uses a store: one small file per user, which says so while it lives.

Nobody waits for anybody: leases only keep `prune` from taking what somebody reads or writes. A user
is dead if its machine is this one and its process is gone, or if it is elsewhere and has not given
a sign for ten minutes (clocks of machines may differ by some of them).
"""

import json
import os
import platform
import secrets
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cache.storage.base import Files, read_whole

USERS = "users"
BEAT_S, DEAD_S = 30.0, 600.0


@dataclass(frozen=True)
class User:
    """Somebody's lease as it was found.

    Args:
        name: the file; `part`: the part it writes, None for a reader.
        fingerprints: what it asked for.
        prunes: whether it frees what others do not use.
        alive: whether it may still use them; `unreadable`: its file cannot be understood.
    """

    name: str
    part: str | None
    fingerprints: frozenset[str]
    prunes: bool
    alive: bool
    unreadable: bool = False


class Lease:
    """A file in the store that says what this process uses; deleted at the process's end."""

    def __init__(self, files: Files, part: str | None = None, prunes: bool = False) -> None:
        """Raises OSError if it cannot be written, as on a read-only disk."""
        self.files = files
        self.part, self.prunes = part, prunes
        self.pid = os.getpid()
        self.fingerprints: set[str] = set()
        host = platform.node() or "unknown"
        self.name = f"{USERS}/{host}-{self.pid}-{secrets.token_hex(4)}.json"
        self._guard = threading.Lock()  # a beat shall not bring back what was released
        self._end = weakref.finalize(self, _delete, files, self.name, self.pid)
        self.beat()
        _beating(self)

    def use(self, fingerprint: str) -> None:
        """Say that a fingerprint is used from now on."""
        self.fingerprints.add(fingerprint)
        self.beat()

    def beat(self) -> None:
        """Write the file."""
        fields = {
            "pid": self.pid,
            "machine": _machine(),
            "began": _began(self.pid),
            "beat": time.time(),
            "part": self.part,
            "prunes": self.prunes,
            "fingerprints": sorted(self.fingerprints),
        }
        with self._guard:
            if self._end.alive:
                content = json.dumps(fields, indent=1).encode()
                self.files.write(self.name, [content], durable=False)

    def release(self) -> None:
        """Delete the file; nothing happens the second time."""
        with self._guard:
            self._end()


def users(files: Files) -> list[User]:
    """Return every lease that stands in a store."""
    found = []
    for name in files.children(USERS):
        if not name.endswith(".json"):
            continue
        name = f"{USERS}/{name}"
        data = read_whole(files, name, None)
        if data is None:
            continue
        try:
            fields = json.loads(data.tobytes())
            part, prunes, used = fields["part"], fields["prunes"], frozenset(fields["fingerprints"])
            alive = _alive(fields["pid"], fields["machine"], fields["began"], fields["beat"])
        except (ValueError, KeyError, TypeError):
            found.append(User(name, None, frozenset(), False, alive=True, unreadable=True))
            continue
        found.append(User(name, part, used, prunes, alive))
    return found


def _alive(pid: int, machine: str, began: str | None, beat: float) -> bool:
    if machine == _machine():
        # A number is used again some day; the time when its process began tells them apart.
        return _runs(pid) and began == _began(pid)
    return time.time() - beat < DEAD_S


def _machine() -> str:
    """Name where process numbers mean the same: host, boot and, in containers, their space."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {boot} {space}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = _stat(pid)
    return not stat or stat[0] not in "ZX"  # a killed process that nobody has waited for


def _began(pid: int) -> str | None:
    stat = _stat(pid)
    return stat[19] if stat else None


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process behind its name, which may hold anything."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _delete(files: Files, name: str, pid: int) -> None:
    # A forked child inherits this, and its parent still lives.
    if os.getpid() == pid:
        with suppress(Exception):
            files.delete(name)


@dataclass
class _Heart:
    """The thread that keeps this process's leases young."""

    pid: int = 0
    leases: "weakref.WeakSet[Lease]" = field(default_factory=weakref.WeakSet)
    guard: threading.Lock = field(default_factory=threading.Lock)


_heart = _Heart()


def _beating(lease: Lease) -> None:
    global _heart
    if _heart.pid != os.getpid():  # neither a thread nor a lock survives a fork
        _heart = _Heart(os.getpid())
        threading.Thread(target=_beat, args=(_heart,), daemon=True).start()
    with _heart.guard:
        _heart.leases.add(lease)


def _beat(heart: _Heart) -> None:
    while True:
        time.sleep(BEAT_S)
        with heart.guard:
            leases = [weakref.ref(lease) for lease in heart.leases]
        for reference in leases:
            # A full disk or a lost network passes, and nobody could catch this.
            with suppress(Exception):
                if lease := reference():
                    lease.beat()
        lease = None  # it may be collected while this sleeps
