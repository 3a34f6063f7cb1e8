"""Several processes as one run: they join, and they end together, each with one line that says why.

Three things tell a process that another is gone. What that one says of itself before it ends: an
entry in JAX's coordination service, for which every process listens. A collective that fails. And
the service's heartbeat, which also ends those that would wait in a collective for ever: it aborts
the process from C++, where nothing is left to do but to say so.
"""

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from rljax.errors import UserError
from rljax.host.agree import meet
from rljax.host.chatter import Chatter
from rljax.host.cluster import Place
from rljax.host.secrets import print_traceback, redact
from rljax.host.stopping import INTERRUPTED, TRY_AGAIN, TransientError

JOIN_SECONDS = 300  # that a process waits for the others to start
SILENT_SECONDS = 10  # of these, after which it says so
HEARTBEAT_SECONDS = 15  # without a sign of life, after which a process is lost
GRACE_SECONDS = 2  # for what was said to be heard
LISTEN_MILLISECONDS = 10**9
LOOPBACK = "127.0.0.1"
BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"
COORDINATION = b"coordination"  # in what JAX prints before it aborts for the loss of a process
END = "rljax/end"  # the entry of the process that ends first: which, why, and its exit code
LOST = (  # in an error of the runtime: signs that another process went away
    *("gloo", "nccl", "connection", "socket closed", "broken pipe", "coordination", "heartbeat"),
    *("unavailable", "deadline_exceeded", "cancelled", "aborted"),
)
OWN = ("resource_exhausted", "invalid_argument", "unimplemented")  # a fault that comes again


class Peers:
    """The processes of a run. Whatever ends one within it, except ``leave``, ends all.

    ``where`` may be set to a function that tells from where the run would go on.
    """

    def __init__(self, place: Place, join_seconds: int = JOIN_SECONDS):
        """Waits for all of them. Raises ``TransientError`` if process 0 is not reached in time."""
        self.where: Callable[[], str] = lambda: "where it was"
        self._place, self._join_seconds = place, join_seconds
        self._index = place.process
        self._joined = False
        self._code: int | None = None  # once all processes have come to their end
        self._ending = threading.Lock()  # only one thread has the last word
        self._chatter = Chatter()
        self._watch_aborts()
        try:
            self._join()
        except UserError:
            self._chatter.restore()
            raise
        self._index, self._joined = jax.process_index(), True
        if place.coordinator is None and self._index == 0:
            self._say_listening(listening_address(_coordinator()))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def describe(self) -> str:
        here = jax.local_device_count()
        return f"{jax.process_count()} processes, this is {self._index}, {here} devices here"

    def leave(self, code: int) -> None:
        """The end of the work, which all processes come to; ``code`` is what each exits with."""
        meet("leave")
        self._ending.acquire()
        self._code = code
        with contextlib.suppress(RuntimeError):  # nothing is left to be done
            jax.distributed.shutdown()
        self._chatter.restore()
        self._listener.join(GRACE_SECONDS)
        if self._listener.is_alive():  # in C++, from where it cannot return as Python ends
            self._exit(code)

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or self._code is not None:
            return
        if isinstance(error, UserError):
            self.end(str(error), 2)
        if isinstance(error, KeyboardInterrupt):
            self.end("interrupted", INTERRUPTED)
        for part in _chain(error):
            if isinstance(part, jax.errors.JaxRuntimeError) and is_of_loss(str(part)):
                time.sleep(GRACE_SECONDS)  # the process that is gone may have said why
                self._lost(str(part).partition("\n")[0])
        print_traceback(kind, error, trace)
        self.end(f"{type(error).__name__}: {error}".partition("\n")[0], 1)

    def _join(self) -> None:
        place = self._place
        bind_address = place.coordinator and listening_address(place.coordinator)
        if bind_address and place.process == 0:
            check_free(bind_address)
            self._say_listening(bind_address)
        elif place.coordinator and place.process:
            self._reach(place.coordinator)
        if place.coordinator and is_loopback(place.coordinator):
            _exchange_on_loopback()
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
        waiting = threading.Timer(SILENT_SECONDS, self._say_waiting)
        waiting.daemon = True
        waiting.start()
        try:
            with _interruptible():
                jax.distributed.initialize(
                    coordinator_address=place.coordinator,
                    coordinator_bind_address=bind_address,
                    num_processes=None if place.process is None else place.processes,
                    process_id=place.process,
                    cluster_detection_method=place.method,
                    initialization_timeout=self._join_seconds,
                    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                )
        except (RuntimeError, ValueError) as error:
            kind = TransientError if isinstance(error, RuntimeError) else UserError
            why = " ".join(str(error).split())
            raise kind(f"{self._name()} cannot join the others: {why}") from error
        finally:
            waiting.cancel()
        if place.alone_on_node:  # JAX gives every task of a scheduler one accelerator
            jax.config.update("jax_cuda_visible_devices", "all")
            jax.config.update("jax_rocm_visible_devices", "all")

    def _say_waiting(self) -> None:
        self._say(f"{self._name()} waits for others to join, for {self._join_seconds} s at most")

    def _say_listening(self, address: str) -> None:
        if not is_loopback(address):
            self._say(
                f"process 0 listens at {address} for the others, without a password: keep that "
                "port within a network that you trust"
            )

    def _say(self, text: str) -> None:
        self._chatter.pass_on(f"{redact(text)}\n".encode())

    def _reach(self, address: str) -> None:
        """Waits until process 0 listens; JAX itself would abort in the end."""
        host, _, port = address.rpartition(":")
        deadline = time.monotonic() + self._join_seconds
        said = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"{self._name()} waited {self._join_seconds} s for process 0 at {address}: "
                        f"{error.strerror or error}"
                    ) from error
                if time.monotonic() > said:
                    self._say_waiting()
                    said = deadline
                time.sleep(0.5)

    def _name(self) -> str:
        known = "?" if self._index is None else self._index
        return f"process {known} of {self._place.processes}"

    def _listen(self) -> None:
        """Waits for another process to say that it ends, and ends then."""
        client = _client()
        if client is None:
            return
        try:
            told = json.loads(client.blocking_key_value_get(END, LISTEN_MILLISECONDS))
        except Exception:  # the service is gone, or this process leaves
            return
        if told["process"] != self._index:
            self._last_words(f"process {told['process']}: {told['line']}", told["code"])

    def end(self, line: str, code: int) -> NoReturn:
        """Ends this process and, by saying so, all others; from any thread."""
        telling = threading.Thread(target=self._tell, args=(line, code), daemon=True)
        telling.start()
        telling.join(GRACE_SECONDS)  # the service may be gone
        mine = f"process {self._index}: " if self._index else ""
        self._last_words(mine + line, code)

    def _tell(self, line: str, code: int) -> None:
        client = _client()
        if client is not None:
            message = {"process": self._index, "line": redact(line), "code": code}
            with contextlib.suppress(RuntimeError):  # another has told already
                client.key_value_set(END, json.dumps(message))

    def _lost(self, why: str) -> NoReturn:
        self.end(
            f"lost another process of this run ({why}); start the same command again: it goes on "
            f"from {self.where()}",
            TRY_AGAIN,
        )

    def _last_words(self, line: str, code: int) -> NoReturn:
        if not self._ending.acquire(blocking=False):
            time.sleep(2 * GRACE_SECONDS)  # while another thread ends the process
        if code != TRY_AGAIN:  # else it tells of the loss of a process, at length
            self._chatter.pass_on(self._chatter.take())
        self._say(f"rljax: error: {line}")
        time.sleep(GRACE_SECONDS if self._index == 0 else 0)  # it keeps what it and others told
        self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        """At once: whatever Python does as it ends could wait for a process that is gone."""
        sys.stdout.flush()
        os._exit(code)

    def _watch_aborts(self) -> None:
        """Sees to it that an abort in C++ ends the process with a line.

        A handler of Python's own would wait for the main thread, which may never come back; this
        one is called on the thread that aborts.
        """
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal(signal.SIGABRT, ctypes.cast(self._on_abort, ctypes.c_void_p))

    def _aborted(self, number: int) -> None:
        if self._code is not None:
            self._exit(self._code)
        said = self._chatter.take()
        if COORDINATION not in said.lower():
            self._chatter.pass_on(said)  # a fault of this process's own: it goes on to abort
        elif self._joined:
            self._lost("there is no sign of life from it")
        else:
            waited = f"waited {self._join_seconds} s for the others to join"
            self._last_words(f"{self._name()} {waited}", TRY_AGAIN)


def listening_address(coordinator: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where process 0 listens, host:port: on loopback alone if that is where the others reach it,
    else on all addresses of its host, unless the environment names one.

    >>> listening_address("127.0.0.1:8476", {}), listening_address("10.0.0.2:8476", {})
    ('127.0.0.1:8476', '[::]:8476')
    """
    if named := environment.get(BIND_ADDRESS):
        return named
    return coordinator if is_loopback(coordinator) else f"[::]:{coordinator.rpartition(':')[2]}"


def is_loopback(address: str) -> bool:
    """Whether host:port is reached from its own host alone.

    >>> is_loopback("localhost:8476"), is_loopback("[::1]:8476"), is_loopback("[::]:8476")
    (True, True, False)
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; a host's own may lead to loopback there, and not elsewhere
        return host == "localhost"


def check_free(address: str) -> None:
    """Raises ``TransientError`` if process 0 cannot listen at host:port, its own."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host == "::":  # all addresses, which a host without IPv6 has too
        host, family = "", socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        raise TransientError(
            f"process 0 cannot listen at {address}: {os.strerror(error.errno)}; unless a run that "
            "is ending holds the port, name another"
        ) from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it Ctrl-C ends the process also while it waits in C++."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_of_loss(error: str) -> bool:
    """Whether an error of JAX's runtime says that another process went away.

    >>> is_of_loss("UNAVAILABLE: Gloo AllReduce failed: Connection closed by peer")
    True
    >>> is_of_loss("RESOURCE_EXHAUSTED: out of memory, after the operations were cancelled")
    False
    """
    error = error.lower()
    return any(sign in error for sign in LOST) and not error.startswith(OWN)


def _exchange_on_loopback() -> None:
    """Has CPUs exchange over loopback, where Gloo else takes the address of the host's name."""
    # Private: JAX has no setting for it. Without it they listen where that name leads.
    try:
        from jax._src import xla_bridge
        from jax._src.lib import _jax

        gloo, make_client = _jax.make_gloo_tcp_collectives, xla_bridge.make_cpu_client
        register = xla_bridge.register_backend_factory
    except (ImportError, AttributeError):
        return

    def make():
        if jax.config.jax_cpu_collectives_implementation != "gloo":
            return make_client()
        return make_client(gloo(distributed_client=_client(), hostname=LOOPBACK))

    register("cpu", make, fail_quietly=False)


def _coordinator() -> str:
    """host:port of process 0, as JAX found it out."""
    try:
        from jax._src import distributed
    except ImportError:
        return "?:?"
    return getattr(distributed.global_state, "coordinator_address", None) or "?:?"


def _client() -> Any:
    """JAX's client of its coordination service."""
    # Private, and used by Orbax too: JAX offers no other way to reach a process whose main thread
    # waits in C++. Without it the heartbeat still ends the others.
    try:
        from jax._src import distributed
    except ImportError:
        return None
    return getattr(distributed.global_state, "client", None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
