"""A device that another process serves, and what happens when that process goes away.

Control is in Python and on whatever thread the driver's register writes come on; a thread of the device's own
watches the connection and makes a new one. The data goes by the relay, without either.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.memory import HIGH_RAM, GuestMemory
from kvmkit.vhost_user.daemon import Daemon
from kvmkit.vhost_user.display import Display
from kvmkit.vhost_user.link import Link, Region, refusal
from kvmkit.vhost_user.messages import MOST_REGIONS, PeerGone, PeerWrong
from kvmkit.virtio.device import DRIVER_OK
from kvmkit.virtio.features import INDIRECT_DESC, VERSION_1

from .kinds import Kind
from .relay import RINGS_AT, Relay

DEVICE_BITS = (1 << 24) - 1 | ((1 << 14) - 1) << 50
"""Feature bits that belong to a kind of device, 2.2; the others are the rings'."""
FIRST_SECONDS = 1.0
"""How long a backend that was there before (or was just started) may take to listen."""
DAEMON_SECONDS = 60.0
"""How long a backend of ours may take to be ready."""
RETRY_SECONDS, SLOWEST_RETRY_SECONDS = 0.05, 2.0
HEALTHY_SECONDS = 2.0
LOST = PeerGone, PeerWrong, OSError


class VhostUserDevice(Relay):
    """The device of `kind` that a backend serves at `path`, a UNIX socket. `memory` must be shared.

    With `daemon`, that process serves it, which is started, started again and ended here; `path` is a name only.

    Raises BadInput and HostError when there is no backend, or it offers what can't be used.
    """

    def __init__(
        self,
        memory: GuestMemory,
        kind: Kind,
        path: str,
        *,
        name: str = "",
        queues: int = 0,
        wait: float = FIRST_SECONDS,
        daemon: Daemon | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if memory.fd < 0:
            raise BadInput(f"{path}: a vhost-user device needs guest memory that can be shared")
        self.path = path
        self.daemon = daemon
        self.spec = kind
        self._link: Link | None = None
        self._up: set[int] = set()
        self._begun = False
        self._replayed: Link | None = None
        self._lost_at = 0.0
        self.display = Display() if kind.display else None
        self.reconnects = 0
        link = self._first(wait)
        try:
            count = self._check(link, kind, queues)
            self._show(link)
            super().__init__(
                memory,
                kind.device,
                count,
                indirect=bool(link.features & INDIRECT_DESC),
                name=name or f"vhost-user {kind.name} {path}",
                driver=kind.driver,
                features=self._offered(link, kind),
                config=kind.config(link, count),
                log=log,
            )
        except BaseException as error:
            link.close()
            if self.display is not None:
                self.display.close()
            if daemon is not None:
                daemon.close()
            if isinstance(error, LOST):
                raise HostError(f"{path}: {error}") from error
            raise
        self._link = link
        self._since = time.monotonic()
        self._ending = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watcher = threading.Thread(target=self._watch, name=f"watch {self.name}", daemon=True)
        self._watcher.start()

    def _show(self, link: Link) -> None:
        """Give a graphics card a display."""
        if self.display is not None:
            link.set_display(self.display.connect())

    def _first(self, wait: float) -> Link:
        if self.daemon is None:
            return self._connect(self.path, wait)
        try:
            self.daemon.start()
            return self._connect(self.daemon.address, 0, DAEMON_SECONDS)
        except BaseException as error:
            why = self.daemon.why() if isinstance(error, KvmkitError) else ""
            self.daemon.close()
            if why:
                raise HostError(f"{self.path}: {why}") from error
            raise

    def _connect(self, path: str, wait: float, answer: float | None = None) -> Link:
        end = time.monotonic() + wait
        while True:
            try:
                return Link(path, answer)
            except OSError as error:
                if time.monotonic() >= end:
                    raise refusal(self.path, error) from error
            except (PeerGone, PeerWrong) as error:
                if time.monotonic() >= end:
                    raise HostError(
                        f"{self.path}: the process that listens there is no vhost-user backend: {error}"
                    ) from error
            time.sleep(RETRY_SECONDS)

    def _check(self, link: Link, kind: Kind, queues: int) -> int:
        """The number of queues. BadInput for what does not fit."""
        if not link.features & VERSION_1:
            raise BadInput(f"{self.path}: this backend does not serve modern devices (VIRTIO_F_VERSION_1)")
        count = queues or kind.queues
        if link.queues and count > link.queues:
            if queues or kind.fixed:
                raise BadInput(f"{self.path}: this backend serves up to {link.queues} queues, not {count}")
            count = link.queues
        if not link.queues and kind.config_queues and not queues:
            count = kind.config_queues(link)
        return max(count, 1)

    @staticmethod
    def _offered(link: Link, kind: Kind) -> int:
        return link.features & DEVICE_BITS & kind.features | kind.own_features

    # What the driver does.

    def _go_on(self) -> None:
        if self.status & DRIVER_OK and not self.held:
            self._try(self._start_queues)
        super()._go_on()

    def _start_queues(self, link: Link) -> None:
        """Have the backend serve each queue that the driver has set up."""
        if not self._begun:
            ours = VERSION_1 | link.features & INDIRECT_DESC
            link.begin(self.accepted & DEVICE_BITS & ~self.spec.own_features | ours, self._regions())
            self._begun = True
        began = [queue.index for queue in self.queues if queue.ready and queue.index not in self._up]
        for index in began:
            self.prepare(index)
            link.start_queue(index, 256, *self.addresses(index))
            self._up.add(index)
        if began and self._replayed is not link:  # once, before any queue has something else to do
            self._replay(began[0])
            self._replayed = link
        if began:
            self.keep(bool(self.accepted & self.spec.flush))
        for index in began:
            self.requeue(index)
            self.connect(index, True)

    def _replay(self, index: int) -> None:
        """A disk's writes that were answered and not flushed, to a backend that need not know of them."""
        failed = self.replay(index)
        if failed < 0:
            raise PeerGone("it does not write again what was not flushed")
        if failed:
            self._say(f"the backend refused {failed} writes that the one before had answered: data may be lost")

    def _regions(self) -> list[Region]:
        memory = self.memory
        found = []
        for guest, host, size in memory.regions():
            found.append(Region(guest, size, host, memory.fd, 0 if guest < HIGH_RAM else memory.low))
        found += [Region(guest, size, host, fd, 0) for guest, host, size, fd in memory.shared_files()]
        if len(found) >= MOST_REGIONS:
            raise PeerWrong(f"{len(found)} pieces of memory are more than it can be told of")
        return [*found, Region(RINGS_AT, self.rings_bytes, self.rings_host, self.rings_fd, 0)]

    def _stop_queues(self, link: Link) -> None:
        while self._up:
            self._stop_queue(link, min(self._up))

    def _stop_queue(self, link: Link, index: int) -> None:
        """The lane is held."""
        self._up.discard(index)
        link.stop_queue(index)
        self.collect(index)
        self.connect(index, False)

    def stopped(self) -> None:
        self._try(self._stop_queues)
        if self._begun and not self.closed:
            self._try(Link.reset)
        self._begun = False
        for index in range(len(self.queues)):
            self.connect(index, False)
            self.forget(index)

    def write_status(self, value: int) -> None:
        with self.lock:
            # Some backends say that a queue is stopped while its last requests are still being done.
            self.finishing = value == 0 and self.spec.finishes
            try:
                super().write_status(value)
            finally:
                self.finishing = False

    def reset_queue(self, index: int) -> None:
        with self.lock:
            self.finishing = self.spec.finishes
            self.lanes[index].hold()
            self.finishing = False
            if index in self._up:
                self._try(lambda link: self._stop_queue(link, index))
            self.connect(index, False)
            self.forget(index)
            super().reset_queue(index)

    def config_written(self, offset: int, size: int, value: int) -> None:
        data = value.to_bytes(size, "little")
        self._try(lambda link: link.set_config(offset, data))
        self.set_config(self.config[:offset] + data + self.config[offset + size :], interrupt=False)

    # What the machine does.

    def hold(self) -> None:
        with self.lock:
            self.finishing = self.spec.finishes
            try:
                super().hold()
            finally:
                self.finishing = False
            self._try(self._stop_queues)

    def close(self) -> None:
        if self.closed:
            return
        os.eventfd_write(self._ending, 1)
        if self._watcher is not threading.current_thread():
            self._watcher.join()
        super().close()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self.display is not None:
            self.display.close()
        if self.daemon is not None:
            self.daemon.close()
        os.close(self._ending)

    @property
    def size(self) -> int:
        """Bytes of a disk."""
        return 512 * int.from_bytes(self.config[:8], "little")

    @property
    def connected(self) -> bool:
        return self._link is not None

    # The connection.

    def _try(self, action: Callable[[Link], None]) -> bool:
        """Do it where there is a backend; one that fails is gone from here on, and its watcher sees to the rest."""
        link = self._link
        if link is None:
            return False
        try:
            action(link)
        except LOST as error:
            self._lose(str(error))
            return False
        return True

    def _lose(self, why: str) -> None:
        """There is no backend. With `lock` held."""
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        for index, lane in enumerate(self.lanes):
            if not self.closed:  # else it has ended
                lane.hold()
            self.collect(index)
            self.connect(index, False)
        self._up.clear()
        self._begun = False
        self._lost_at = time.monotonic()
        if self.spec.stateful:
            for index in range(len(self.queues)):
                self.give_up(index)
            self._say(f"its backend is gone ({why}): the guest gets errors (ENOTCONN) until it mounts it again")
        else:
            then = "it is started again" if self.daemon else f"another one listens at {self.path}"
            self._say(f"its backend is gone ({why}): the guest waits until {then}")
        if self.status & DRIVER_OK and not self.held and not self.closed:
            for lane in self.lanes:
                lane.run()
        os.eventfd_write(self.trouble, 1)  # for the watcher

    def _say(self, what: str) -> None:
        if self.log is not None and not self.closed:
            self.log(f"{self.name}: {what}")

    def _watch(self) -> None:
        delay = RETRY_SECONDS
        refused = ""
        while True:
            link = self._link
            if link is not None:
                refused = ""
                if self._wait_on(link):
                    return
                continue
            lived = self._lost_at - self._since
            delay = RETRY_SECONDS if lived > HEALTHY_SECONDS else min(2 * delay, SLOWEST_RETRY_SECONDS)
            while self._link is None:
                if self._sleep(delay):
                    return
                why = self._again()
                if why and why != refused:
                    refused = why
                    self._say(f"the backend that now listens at {self.path} can't be used: {why}")
                    delay = SLOWEST_RETRY_SECONDS

    def _sleep(self, seconds: float) -> bool:
        """True: it is over."""
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def _wait_on(self, link: Link) -> bool:
        """Wait until something happens with this connection, and see to it. True: it is over."""
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        poll.register(self.trouble, select.POLLIN)
        poll.register(link.channel.sock, select.POLLRDHUP)
        if link.backend is not None:
            poll.register(link.backend.sock, select.POLLIN)
        try:
            ready = dict(poll.poll())
        except (OSError, ValueError):  # closed under us
            return False
        if self._ending in ready:
            return True
        while not self.lock.acquire(timeout=0.05):
            if self._sleep(0):
                return True
        try:
            if self.trouble in ready:
                os.eventfd_read(self.trouble)
            if self._link is not link:
                return False
            if self.trouble in ready and (wrong := self.wrong()):
                self._lose(wrong)
            elif link.backend is not None and link.backend.sock.fileno() in ready:
                self._try(self._listen)
            elif link.channel.sock.fileno() in ready:
                self._lose("it closed the connection")
        finally:
            self.lock.release()
        return False

    def _listen(self, link: Link) -> None:
        if link.backend_says():
            self._take_config(link)

    def _take_config(self, link: Link) -> None:
        if self.config:
            self.set_config(self.spec.config(link, len(self.queues)))

    def _again(self) -> str:
        """Try to have a backend again. What is wrong with the one that listens; empty: nothing, or there is none."""
        try:
            if self.daemon is not None:
                if not self.daemon.running:
                    self.daemon.start()
                link = Link(self.daemon.address, DAEMON_SECONDS)
            else:
                link = Link(self.path)
        except OSError:
            return ""
        except (PeerGone, PeerWrong) as error:
            return (self.daemon.why() if self.daemon is not None else "") or str(error)
        why = self._unlike(link)
        if why:
            link.close()
            return why
        while not self.lock.acquire(timeout=0.05):
            if self._sleep(0):
                link.close()
                return ""
        try:
            self._link = link
            self._since = time.monotonic()
            if not (self._try(self._show) and self._try(self._take_config)):
                return ""
            for lane in self.lanes:
                lane.hold()
            self._go_on()
            if self._link is not None:
                self.reconnects += 1
                mount = "; what the guest had mounted it has to unmount, and mount again" if self.spec.stateful else ""
                self._say(f"a backend serves it again{mount}")
        finally:
            self.lock.release()
        return ""

    def _unlike(self, link: Link) -> str:
        """Why the driver can't go on with this backend."""
        needed = self.accepted & DEVICE_BITS & ~self.spec.own_features
        if not link.features & VERSION_1 or needed & ~link.features:
            return "it lacks features that the guest's driver uses"
        if self.features & INDIRECT_DESC and not link.features & INDIRECT_DESC:
            return "it has no indirect descriptors, as the one before had"
        if link.queues and link.queues < len(self.queues):
            return f"it serves {link.queues} queues, not {len(self.queues)}"
        return ""
