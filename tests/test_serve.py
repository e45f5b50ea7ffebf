"""The catalog's server: what it shows, whom it refuses, and that nothing typed brings it down (acceptance E3)."""

import contextlib
import gc
import http.client
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlencode

import pytest

from dualcalc import catalog, serve
from dualcalc.cli import main

from .test_parsing import HOSTILE
from .test_site import Page

HANGING = "(t + ({} + 1)/1009)**20*Heaviside(t)"  # minutes each
linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")


@pytest.fixture(scope="module")
def server():
    with serve.Server(catalog.load(), limits=serve.Limits(60.0, 2**30)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server, method, path, body=None, headers=None):
    """(status, headers, text)"""
    host, port = server.server_address
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def own(server):
    return {"Origin": server.url[:-1], "Content-Type": "application/x-www-form-urlencoded"}


def derive(server, text, parameters=""):
    body = urlencode({"expr": text, "parameters": parameters})
    status, _, page = ask(server, "POST", "/live", body, own(server))
    return status, page


def raw(server, data, wait=5.0):
    """What comes back for these bytes."""
    with socket.create_connection(server.server_address, timeout=wait) as connection:
        connection.sendall(data)
        try:
            return connection.recv(65536)
        except (TimeoutError, ConnectionError):
            return b""


# Pages ------------------------------------------------------------------------------------------------------------


def test_it_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_index(server):
    status, headers, text = ask(server, "GET", "/")
    assert status == 200 and headers["X-Content-Type-Options"] == "nosniff" and "Python" not in headers["Server"]
    listed = [a["data-id"] for tag, a in Page(text).tags if tag == "li" and "data-id" in a]
    assert listed == list(catalog.load()) and 'href="live"' in text
    assert [e["id"] for e in json.loads(ask(server, "GET", "/index.json")[2])] == listed


def test_entries_and_their_files(server):
    status, _, text = ask(server, "GET", "/relu.html")
    assert status == 200 and "verified, worst error" in text
    assert json.loads(ask(server, "GET", "/relu.json")[2])["id"] == "relu"
    for address in Page(text).resources():
        if address.startswith("assets/"):
            assert ask(server, "GET", f"/{address}")[0] == 200


@pytest.mark.parametrize("path", ["http://[/", "/live?a=1&b=2&c=3&d=4&e=5"])
def test_what_is_no_address(server, path):
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n"
    assert b" 400 " in raw(server, head.encode())


def test_a_page_that_fails_holds_up_no_other(tmp_path, monkeypatch):
    """It fails once, within its limits, and is not tried again at once; other pages are made meanwhile."""
    monkeypatch.setattr(serve, "PAGE", serve.Limits(3.0, 2**30))
    catalog.new_entry(tmp_path, "slow", expression=HANGING.format(1))
    with serve.Server(catalog.load(tmp_path)) as server, ThreadPoolExecutor(2) as pool:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        slow, other = (pool.submit(ask, server, "GET", f"/{id}.html") for id in ("slow", "identity"))
        assert (slow.result()[0], other.result()[0]) == (503, 200)
        began = time.perf_counter()
        assert ask(server, "GET", "/slow.html")[0] == 503 and time.perf_counter() - began < 1
        server.shutdown()


@pytest.mark.parametrize("path", ["/no.html", "/../pyproject.toml", "/assets/../site.py", "/relu", "/relu.yaml", "//x"])
def test_nothing_else_is_served(server, path):
    assert ask(server, "GET", path)[0] == 404


# What is typed ----------------------------------------------------------------------------------------------------


def test_a_new_activation_gets_its_page(server):
    status, page = derive(server, "t*Phi(A*t)", "A=5/7")
    assert status == 200 and "verified, worst error" in page and 'value="t*Phi(A*t)"' in page
    kept = "dualcalc catalog new --folder mine --id my_activation --expression &#39;t*Phi(A*t)&#39; -p A=5/7"
    assert f"mkdir -p mine &amp;&amp; {kept}" in page
    assert "my_activation.html" not in page  # there is no such file


def test_a_degree_and_a_text_in_x(server):
    assert derive(server, "hermite(n, t)", "n=3")[0] == 200 and derive(server, "x*Phi(x)")[0] == 200


def test_without_a_closed_form(server):
    status, page = derive(server, "t*tanh(t)")
    assert status == 200 and "approximated to" in page


def test_an_id_is_looked_up(server):
    assert derive(server, "relu")[1] == ask(server, "GET", "/relu.html")[2]


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("t*Phi(", "", "^\ngot a bracket that is never closed"),
        ("t*Phi(A*t)", "", "got no value for A; give one, as A=1"),
        ("t*Phi(A*t)", "A", "got &#39;A&#39; for the parameters; expected NAME=NUMBER"),
        ("t*Phi(A*t)", "A=1,A=2", "each name once"),
        ("t*Phi(A*t)", "A=__import__", "expected"),
        ("", "", "empty"),
        ('"><script>alert(1)</script>', "", "&lt;script&gt;"),
    ],
)
def test_what_is_wrong_is_said(server, text, parameters, message):
    status, page = derive(server, text, parameters)
    assert status == 422 and message in page and "<script>alert" not in page


def test_a_number_that_float64_cannot_hold(server):
    status, page = derive(server, "A*Max(t, 0)", "A=1e308")
    assert status == 200 and "float64 cannot hold" in page and "internal error" not in page


def test_a_link_fills_the_form_and_computes_nothing(server):
    status, _, text = ask(server, "GET", "/live?" + urlencode({"expr": HANGING.format(1)}))
    assert status == 200 and HANGING.format(1) in text


# Whom it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1", "localhost:1", "", "127.0.0.1:{}@x"])
def test_a_foreign_host(server, host):
    for method in ("GET", "POST"):
        answer = ask(server, method, "/live", "expr=t", {"Host": host.format(server.server_port), "Origin": "http://x"})
        assert answer[0] == 421 and "<h1>Nothing to show" in answer[2]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_the_names_of_this_machine(server, name):
    host = f"{name}:{server.server_port}"
    assert ask(server, "POST", "/live", "expr=t*", {"Host": host, "Origin": f"http://{host}"})[0] == 422


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "https://127.0.0.1:{}", "http://127.0.0.1"])
def test_a_foreign_origin(server, origin):
    headers = {} if origin is None else {"Origin": origin.format(server.server_port)}
    assert ask(server, "POST", "/live", "expr=t", headers)[0] == 403


@pytest.mark.parametrize(("mode", "status"), [("no-cors", 403), ("navigate", 200)])
def test_other_sites_may_link_but_not_load(server, mode, status):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
    assert ask(server, "GET", "/relu.html", headers=headers)[0] == status


@pytest.mark.parametrize(
    ("host", "name", "admitted"),
    [
        ("0.0.0.0", "192.0.2.7:{}", True),
        ("0.0.0.0", "evil.example:{}", False),
        ("127.0.0.1", "192.0.2.7:{}", False),
    ],
)
def test_whom_it_answers_where_more_is_asked_for(host, name, admitted):
    with serve.Server(catalog.load(), host) as opened:
        assert opened.admits(name.format(opened.server_port)) == admitted


# What it survives (E3) --------------------------------------------------------------------------------------------


def test_exploits_of_the_parser(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in HOSTILE:
        status, page = derive(server, text)
        assert status in (413, 422) and "internal error" not in page, text[:60]
    assert not list(tmp_path.iterdir()) and derive(server, "t*Phi(t)")[0] == 200


def memory(pid):
    """Bytes that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def family():
    """This process and all that came of it."""
    found, parents = [os.getpid()], {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                parents[int(pid)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


@linux
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_many_that_hang(server, count):
    derive(server, "t*Phi(t)")
    gc.collect()
    before, held = set(family()), memory(os.getpid())
    server.limits = serve.Limits(0.1, 2**30)
    try:
        for i in range(count):
            status, page = derive(server, HANGING.format(i))
            assert status == 503 and "no answer within 0.1 s" in page
    finally:
        server.limits = serve.Limits(60.0, 2**30)
    assert derive(server, "t*Phi(t)")[0] == 200
    time.sleep(0.2)
    gc.collect()
    assert set(family()) == before, "processes were left"
    assert memory(os.getpid()) - held < 30 * 2**20


def hog():
    return len([bytes(2**20) for _ in range(10**6)])


def fail():
    raise KeyError("ours")


@linux
def test_memory_is_limited():
    with pytest.raises(serve.Refused, match="it took over 200 MiB of memory"):
        serve.isolated(hog, serve.Limits(20, 200 * 2**20))


def test_a_process_that_dies_is_noticed():
    with pytest.raises(serve.Refused, match="the computation broke off"):
        serve.isolated(partial(os._exit, 1), serve.Limits(20))
    with pytest.raises(serve.Refused, match="internal error, KeyError: 'ours'; please report it"):
        serve.isolated(fail, serve.Limits(20))


def test_megabytes(server):
    start = time.perf_counter()
    assert derive(server, "t" * 2**20)[0] == 413
    head = f"Host: 127.0.0.1:{server.server_port}\r\nOrigin: {server.url[:-1]}\r\n"
    assert b" 414 " in raw(server, f"GET /{'t' * 2**20} HTTP/1.1\r\n{head}\r\n".encode())
    assert b" 431 " in raw(server, f"GET / HTTP/1.1\r\n{head}X: {'t' * 2**20}\r\n\r\n".encode())
    for length in ("-1", "1e9", "9" * 30, "", str(2**40)):
        answer = raw(server, f"POST /live HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n".encode())
        assert b" 413 " in answer, length
    assert derive(server, "t", "A=" + "1" * 15000)[0] == 422
    assert ask(server, "POST", "/live", "&".join(f"a{i}=1" for i in range(2000)), own(server))[0] in (400, 413)
    assert time.perf_counter() - start < 20 and derive(server, "t*Phi(t)")[0] == 200


def test_a_slow_visitor_holds_nobody_up(server):
    head = f"POST /live HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nOrigin: {server.url[:-1]}\r\n"
    with socket.create_connection(server.server_address) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\nexpr=".encode())
        assert derive(server, "t*Phi(t)")[0] == 200


def test_who_sends_byte_by_byte_is_heard_for_so_long(monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 0.5)
    monkeypatch.setattr(serve.Handler, "timeout", 0.5)
    with serve.Server(catalog.load()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.perf_counter()
        with socket.create_connection(server.server_address, timeout=20) as slow, contextlib.suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\n" * 100:
                slow.sendall(bytes([byte]))
                time.sleep(0.1)
        assert time.perf_counter() - began < 15
        assert ask(server, "GET", "/")[0] == 200
        server.shutdown()


def test_connections_are_so_many_and_no_more(monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 0.2)
    monkeypatch.setattr(serve, "CONNECTIONS", 4)
    with serve.Server(catalog.load()) as server, contextlib.ExitStack() as idle:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(6):
            idle.enter_context(socket.create_connection(server.server_address))
        time.sleep(1.0)
        assert sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= 4
        idle.close()
        assert ask(server, "GET", "/")[0] == 200
        server.shutdown()


def test_what_is_printed_belongs_to_nobody(capfd):
    assert serve.isolated(partial(os.write, 1, b"FLINT says"), serve.Limits(20)) == 10
    assert capfd.readouterr().out == ""


def test_one_waits_and_others_come_back(server):
    server.limits = serve.Limits(2.0, 2**30)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda i: derive(server, HANGING.format(i)), range(4)))
    finally:
        server.limits = serve.Limits(60.0, 2**30)
    said = sorted("two activations are being derived" in page for _, page in answers)
    assert said == [False, False, True, True] and {status for status, _ in answers} == {503}


def test_the_command(monkeypatch):
    from click.testing import CliRunner

    monkeypatch.setattr(serve.Server, "serve_forever", lambda self: None)
    result = CliRunner().invoke(main, ["catalog", "browse", "--port", "0"])
    assert result.exit_code == 0 and "the catalog is at http://127.0.0.1:" in result.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = CliRunner().invoke(main, ["catalog", "browse", "--port", str(taken.getsockname()[1])])
    assert busy.exit_code == 2 and "--port 0 takes a free port" in busy.output
