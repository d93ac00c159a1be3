"""The viewer talks to its own page, and to no page of another site."""

import pytest

from lods_jax.runs.view import HOST, is_own_page, own_pages_only


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:9000", "http://localhost:9000", True),  # a tunnel
        ("127.0.0.1:8080", None, True),  # the page itself, or a program
        ("127.0.0.1:8080", "http://localhost:8080", False),
        ("127.0.0.1:8080", "http://127.0.0.1:3000", False),
        ("127.0.0.1:8080", "http://evil.example", False),
        ("127.0.0.1:8080", "null", False),
        ("evil.example:8080", "http://evil.example:8080", False),  # a name that was pointed at this machine
        ("127.0.0.1.evil.example:8080", "http://127.0.0.1.evil.example:8080", False),
        (None, None, False),
    ],
)
def test_only_the_servers_own_page_is_answered(host, origin, own):
    assert is_own_page([host] if host else [], [origin] if origin else []) is own


def test_a_server_refuses_the_socket_of_a_foreign_page():
    viser = pytest.importorskip("viser")
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with own_pages_only():
        server = viser.ViserServer(host=HOST, port=18_090, verbose=False)
    try:
        address = f"{HOST}:{server.get_port()}"
        with connect(f"ws://{address}", origin=f"http://{address}", open_timeout=20):
            pass
        with pytest.raises(InvalidStatus, match="403"), connect(f"ws://{address}", origin="http://evil.example", open_timeout=20):
            pass
    finally:
        server.stop()
