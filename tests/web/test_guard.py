"""Who may talk to the server: this computer, this page, this token."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fake_assistant import Writer, mails
from serving import Egress, running

from panza.home import open_home
from panza.types import UserError
from panza.web.server import Listening, _bind


def ask(
    listening: Listening, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", listening.port, timeout=180)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    response.text = response.read().decode("utf-8", "replace")
    return response


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, egress: Egress) -> Iterator[Listening]:
    with running(Writer(open_home(tmp_path_factory.mktemp("home")), mails())) as listening:
        yield listening
    assert egress.hosts == [], "the server left this computer"


@pytest.fixture
def cookie(page: Listening) -> str:
    return f"panza_{page.port}={page.token}"


def test_the_link_sets_a_strict_cookie_and_loses_the_token(page: Listening, cookie: str):
    response = ask(page, f"/?token={page.token}")
    assert (response.status, response.headers["location"]) == (303, "/")
    set_cookie = response.headers["set-cookie"]
    assert set_cookie.startswith(cookie)
    assert "httponly" in set_cookie.lower() and "samesite=strict" in set_cookie.lower()
    assert ask(page, cookie=cookie).status == 200


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/gradio_api/queue/join", "/panza.css",
                                  "/gradio_api/file=/etc/passwd", "/docs", "/openapi.json", "/nothing"])  # fmt: skip
@pytest.mark.parametrize("cookie_value", ["", "wrong", "é"])
def test_without_the_token_every_path_is_one_refusing_sentence(page: Listening, path: str, cookie_value: str):
    response = ask(page, path, cookie=f"panza_{page.port}={cookie_value}".encode())
    assert response.status == 403 and response.text.startswith("Open the link that Panza printed")


def test_a_wrong_token_in_the_link_is_refused_even_with_the_cookie(page: Listening, cookie: str):
    assert ask(page, "/?token=wrong", cookie=cookie).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}",
                                  "0.0.0.0:{port}", ""])  # fmt: skip
def test_a_foreign_host_is_refused_token_or_not(page: Listening, cookie: str, host: str):
    response = ask(page, cookie=cookie, host=host.format(port=page.port))
    assert response.status == 403 and response.text.startswith("Panza answers only at the address 127.0.0.1")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
                                    "file://", "", "http://evil.example:{port}"])  # fmt: skip
def test_a_foreign_origin_is_refused_token_or_not(page: Listening, cookie: str, origin: str):
    post = dict(method="POST", body=b"{}", content_type="text/plain", cookie=cookie)
    response = ask(page, "/gradio_api/queue/join", origin=origin.format(port=page.port), **post)
    assert response.status == 403 and "other sites" in response.text
    own = ask(page, "/gradio_api/queue/join", origin=f"http://127.0.0.1:{page.port}", **post)
    assert own.status != 403


def test_every_answer_carries_the_policy(page: Listening, cookie: str):
    for response in (ask(page), ask(page, cookie=cookie), ask(page, "/panza.css", cookie=cookie)):
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
        assert response.headers["cache-control"] == "no-store"
        assert "server" not in response.headers


def test_no_event_is_a_public_api_and_nothing_is_shared_or_recorded(page: Listening, cookie: str):
    info = json.loads(ask(page, "/gradio_api/info", cookie=cookie).text)
    config = json.loads(ask(page, "/config", cookie=cookie).text)
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}
    assert config["run_history"] is False and config["footer_links"] == [] and config["analytics_enabled"] is False
    assert "Harbor" not in json.dumps(config), "mail must not stand in the page's settings"


def test_the_server_listens_on_this_computer_only(page: Listening):
    assert page.sock.getsockname()[0] == "127.0.0.1"


def test_temporary_files_stay_in_the_home(page: Listening):
    from gradio.utils import get_upload_folder

    folder = os.environ["GRADIO_TEMP_DIR"]
    assert get_upload_folder() == folder or folder in get_upload_folder()
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_taken_port_gives_way_to_the_next_and_none_left_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with _bind(port) as found:
            assert port < found.getsockname()[1] < port + 20
    with pytest.raises(UserError, match="65600"):
        _bind(65600)


def test_importing_the_package_imports_no_gradio_and_starts_nothing():
    code = "import sys, panza.web; assert not {'gradio', 'uvicorn', 'fastapi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
