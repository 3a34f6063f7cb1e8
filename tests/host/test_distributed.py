"""Where processes listen, and that they can."""

import socket

import pytest
from jax._src import xla_bridge
from jax._src.lib import _jax

from rljax.host.distributed import (
    _exchange_on_loopback,
    check_free,
    is_loopback,
    listening_address,
)
from rljax.host.stopping import TransientError


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.0.1.1", True), ("[::1]", True)),
        *(("10.0.0.2", False), ("0.0.0.0", False), ("[::]", False), ("[2001:db8::1]", False)),
        ("localhost.example.org", False),
        (socket.gethostname(), False),  # wherever it leads on this host
    ],
)
def test_only_what_leads_nowhere_else_is_loopback(host, local):
    if host == "localhost" and not local:
        pytest.skip("the name of this host is localhost")
    assert is_loopback(f"{host}:8476") == local
    expected = f"{host}:8476" if local else "[::]:8476"
    assert listening_address(f"{host}:8476", {}) == expected


def test_the_environment_says_otherwise():
    told = {"JAX_COORDINATOR_BIND_ADDRESS": "10.0.0.2:8476"}
    assert listening_address("head.cluster:8476", told) == "10.0.0.2:8476"
    assert listening_address("localhost:8476", told) == "10.0.0.2:8476"


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::]:{port}"):
            with pytest.raises(TransientError, match=r"cannot listen at .*Address already in use"):
                check_free(address)
    check_free(f"localhost:{port}")
    check_free(f"[::]:{port}")


def test_cpus_exchange_over_loopback(monkeypatch):
    made = {}
    monkeypatch.setattr(
        xla_bridge, "register_backend_factory", lambda n, f, **_: made.update({n: f})
    )
    monkeypatch.setattr(xla_bridge, "make_cpu_client", lambda collectives: collectives)
    monkeypatch.setattr(_jax, "make_gloo_tcp_collectives", lambda **given: given)
    _exchange_on_loopback()
    assert made["cpu"]() == {"distributed_client": None, "hostname": "127.0.0.1"}
