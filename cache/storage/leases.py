"""Leases: one small file per process that uses a store, for as long as it does.

Nobody waits for anybody: leases only keep `prune` from freeing what somebody reads or writes. A
lease is dead if it is of this machine and its process is gone, or if it is of another machine and
has not been renewed for ten minutes (the clocks of machines may differ by some of them).
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

from cache.storage.base import Files

USERS = "users"
RENEW_S, EXPIRE_S = 30.0, 600.0
LEASE_BYTES = 2**20  # at most: of some 30,000 fingerprints


@dataclass(frozen=True)
class User:
    """A process that uses a store, from its lease.

    Args:
        name: the lease's file; `part`: the part that it writes, None for a reader.
        fingerprints: those that it has used.
        prunes: whether it frees what others do not use.
        alive: whether it may still use them; `unreadable`: the file cannot be parsed.
    """

    name: str
    part: str | None
    fingerprints: frozenset[str]
    prunes: bool
    alive: bool
    unreadable: bool = False


class Lease:
    """A file in the store that lists what this process uses; deleted when the process ends."""

    def __init__(self, files: Files, part: str | None = None, prunes: bool = False) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written, as on a read-only disk.
        """
        self.files = files
        self.part, self.prunes = part, prunes
        self.pid = os.getpid()
        self.fingerprints: set[str] = set()
        host = platform.node().lower() or "unknown"  # some file systems know no other
        self.name = f"{USERS}/{host}-{self.pid}-{secrets.token_hex(4)}.json"
        self._lock = threading.Lock()  # renewing must not bring back a released file
        self._finalizer = weakref.finalize(self, _delete, files, self.name, self.pid)
        self.renew()
        _keep_renewed(self)

    def add_fingerprint(self, fingerprint: str) -> None:
        """Record that this process uses a fingerprint from now on."""
        self.fingerprints.add(fingerprint)
        self.renew()

    def renew(self) -> None:
        """Write the file again, with the time of now."""
        with self._lock:  # else a slow renewal could write what was in use before
            fields = {
                "pid": self.pid,
                "machine": _machine_id(),
                "began": _start_time(self.pid),
                "beat": time.time(),
                "part": self.part,
                "prunes": self.prunes,
                "fingerprints": sorted(self.fingerprints),
            }
            if self._finalizer.alive:
                content = json.dumps(fields, indent=1).encode()
                self.files.write(self.name, [content], durable=False)

    def release(self) -> None:
        """Delete the file; nothing happens the second time."""
        with self._lock:
            self._finalizer()


def list_users(files: Files) -> list[User]:
    """Return every process that has a lease in a store."""
    found = []
    names = [f"{USERS}/{name}" for name in files.children(USERS) if name.endswith(".json")]
    for name, data in zip(names, files.read([(n, 0, LEASE_BYTES) for n in names]), strict=True):
        if data is None:
            continue
        try:
            fields = json.loads(data.tobytes())
            part, prunes, used = fields["part"], fields["prunes"], frozenset(fields["fingerprints"])
            alive = _is_alive(fields["pid"], fields["machine"], fields["began"], fields["beat"])
        except (ValueError, KeyError, TypeError):
            found.append(User(name, None, frozenset(), False, alive=True, unreadable=True))
            continue
        found.append(User(name, part, used, prunes, alive))
    return found


def _is_alive(pid: int, machine: str, start_time: str | None, renewed: float) -> bool:
    if machine == _machine_id():
        # Process numbers are reused; the start time distinguishes the processes.
        return _is_running(pid) and start_time == _start_time(pid)
    return time.time() - renewed < EXPIRE_S


def _machine_id() -> str:
    """Return a name of where process numbers are valid: host, boot and PID namespace."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {boot} {space}"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = _read_stat(pid)
    return not stat or stat[0] not in "ZX"  # a killed process that nobody has waited for


def _start_time(pid: int) -> str | None:
    stat = _read_stat(pid)
    return stat[19] if stat else None


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold anything."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _delete(files: Files, name: str, pid: int) -> None:
    # A forked child inherits this, and its parent still lives.
    if os.getpid() == pid:
        with suppress(Exception):
            files.delete(name)


@dataclass
class _Renewer:
    """The leases of this process, which a thread of it renews."""

    pid: int = 0
    leases: "weakref.WeakSet[Lease]" = field(default_factory=weakref.WeakSet)
    lock: threading.Lock = field(default_factory=threading.Lock)


_renewer = _Renewer()


def _keep_renewed(lease: Lease) -> None:
    global _renewer
    if _renewer.pid != os.getpid():  # neither a thread nor a lock survives a fork
        _renewer = _Renewer(os.getpid())
        threading.Thread(target=_renew_forever, args=(_renewer,), daemon=True).start()
    with _renewer.lock:
        _renewer.leases.add(lease)


def _renew_forever(renewer: _Renewer) -> None:
    while True:
        time.sleep(RENEW_S)
        with renewer.lock:
            leases = [weakref.ref(lease) for lease in renewer.leases]
        for reference in leases:
            # A full disk or a lost network passes, and nobody could catch this.
            with suppress(Exception):
                if lease := reference():
                    lease.renew()
        lease = None  # it may be collected while this sleeps
