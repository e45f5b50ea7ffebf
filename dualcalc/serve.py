"""The catalog in a browser on this machine: pages made as they are opened, and one for any activation that is typed.

Everything that a visitor can make expensive runs in a process of its own, with limits on time and memory, which ends
with its answer: what it took is given back, and nothing that it did is left. Requests that name another host or come
from another site are refused, so that no page of the web can drive this server. `dualcalc catalog browse` calls it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from . import catalog, site
from .dual import drafted
from .facts import Facts, facts, summary
from .parsing import parse_activation

__all__ = ["Limits", "Refused", "Server", "isolated", "typed"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PATIENCE = 10.0  # seconds to wait for the bytes of a request
AGAIN = 60.0  # seconds after which a page that failed is tried again
CONNECTIONS = 64  # at a time; more wait in the system's queue, or are refused by it
MAX_FORM = 16 * 1024  # bytes of a form that is sent
DISCARDED = 8 * 2**20  # bytes of a form that are read and forgotten, before it is refused
MAX_ANSWER = 64 * 2**20  # bytes of what a process answers
TYPES = {"html": "text/html", "json": "application/json", "js": "text/javascript", "css": "text/css"}
TYPES |= {"woff2": "font/woff2", "LICENSE": "text/plain"}
POLICY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


GIVE = "write the activation more simply, or give more with `dualcalc catalog browse "


class Limits(NamedTuple):
    """Of one computation, and what to do where it meets them."""

    seconds: float = 20.0
    memory: int = 2**30  # bytes beyond what the libraries take
    slow: str = f"{GIVE}--seconds`; what has no closed form takes longer"
    large: str = f"{GIVE}--memory`"


TYPED = Limits()
ELSEWHERE = "`dualcalc catalog site` has no such limit"
PAGE = Limits(120.0, 4 * 2**30, ELSEWHERE, ELSEWHERE)  # for an entry of the catalog, which its owner wrote


class Refused(Exception):
    """A request that gets no page: the HTTP status, and what to do about it."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason


# Computing apart ---------------------------------------------------------------------------------------------------


def isolated(work: Callable[[], Any], limits: Limits) -> Any:
    """What `work` returns, as JSON can hold it, from a process that ends with it, or at the limits.

    `work` is pickled. Raises ValueError where it does, and `Refused` where it has no answer within the limits.
    """
    ours, theirs = _context().Pipe(duplex=False)
    process = _context().Process(target=_work, args=(theirs, work, limits), daemon=True)
    process.start()
    theirs.close()
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(limits.seconds, stop)
    try:
        ours.recv_bytes()  # it is there: what it took to start is not its fault
        clock.start()
        answer = json.loads(ours.recv_bytes(MAX_ANSWER))
    except (EOFError, OSError):  # it died, or sent too much
        process.join(1)
        aborted = process.exitcode == -signal.SIGABRT  # as FLINT does where there is no memory
        if late.is_set():
            raise Refused(503, f"no answer within {limits.seconds:g} s; {limits.slow}") from None
        raise Refused(
            503, f"out of memory; {limits.large}" if aborted else f"the computation broke off; {limits.slow}"
        ) from None
    finally:
        clock.cancel()
        if clock.ident is not None:
            clock.join()  # it may be stopping the process just now
        process.kill()
        process.join()
        process.close()
        ours.close()
    if "memory" in answer:
        raise Refused(503, f"it took over {limits.memory / 2**20:.0f} MiB of memory; {limits.large}")
    if "internal" in answer:
        raise Refused(500, f"internal error, {answer['internal']}; please report it")
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


def _context() -> Any:
    """Processes are copies of one that has imported everything and holds no threads of ours, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _work(answer: Connection, work: Callable[[], Any], limits: Limits) -> None:
    for stream in (1, 2):  # what libraries print belongs to nobody's prompt
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    _limit(limits)
    answer.send_bytes(b"")
    try:
        found = json.dumps({"result": work()}, allow_nan=False)
    except MemoryError:
        found = '{"memory": true}'
    except RecursionError:
        found = '{"error": "the formula is nested too deeply; write it more simply"}'
    except ValueError as error:
        found = json.dumps({"error": str(error)})
    except Exception as error:  # ours: it must not look like the visitor's
        found = json.dumps({"internal": f"{type(error).__name__}: {error}"})
    answer.send_bytes(found.encode())
    answer.close()


def _limit(limits: Limits) -> None:
    """The system's own limits: on memory, and on processor time, should nobody be left to stop the process."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows: the clock remains
        return
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(2 * limits.seconds) + 2,) * 2)
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + limits.memory,) * 2)


def typed(text: str, parameters: Mapping[str, Any]) -> Facts:
    """The facts of an activation that is in no catalog; ValueError where it cannot be read."""
    try:
        entry, record = drafted("my_activation", expression=text, name="Your activation", parameters=parameters)
    except catalog.CatalogError:  # of the formula alone, with a caret, where that is what is wrong
        names = {symbol.name for symbol in parse_activation(text).free_symbols} - {"t", *parameters}
        if names:
            example = ", ".join(f"{name}=1" for name in sorted(names))
            raise ValueError(f"got no value for {', '.join(sorted(names))}; give one, as {example}") from None
        raise
    found = facts(entry, {}, record)
    if found["status"]["kind"] == "broken":
        raise ValueError(found["status"]["detail"])
    return found | {"notes": ""}


def read_parameters(text: str) -> dict[str, Any]:
    """`A=2, B=1/3` or, with a list, `a=1,-2,1/2`; the catalog checks the numbers."""
    found: dict[str, Any] = {}
    for part in filter(None, map(str.strip, re.split(r"[;\n]|,(?=\s*[A-Za-z])", text))):
        name, equals, value = map(str.strip, part.partition("="))
        if not equals or not name or name in found:
            raise ValueError(
                f"got {part[:60]!r} for the parameters; expected NAME=NUMBER, each name once, as A=2, B=1/3"
            )
        found[name] = [x.strip() for x in value.split(",")] if "," in value else value
    return found


# The server --------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves a catalog. `url` is where; `serve_forever()` runs it, `shutdown()` ends that.

    host   the address that is listened on; the port 0 takes a free one
    limits of one activation that is typed: one is computed at a time, one more may wait, others are told to come back
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, known: catalog.Catalog, host: str = LOOPBACK[0], port: int = 0, limits: Limits = TYPED):
        self.closing = ExitStack()  # first: what cannot listen is closed too
        super().__init__((host, port), Handler)
        self.known, self.limits = known, limits
        typeset = self.closing.enter_context(site.typesetting(shutil.which("node")))
        self.environment = site.environment(typeset, live=True)
        self.turn, self.queue = threading.Lock(), threading.BoundedSemaphore(2)
        self.pages, self.failed = dict[str, str](), dict[str, tuple[Refused, float]]()
        self.making = threading.BoundedSemaphore(2)  # pages of entries at a time
        self.connections = threading.BoundedSemaphore(CONNECTIONS)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self.closing.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, of which there are so many that no visitor can exhaust the machine's."""
        if not self.connections.acquire(timeout=PATIENCE):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread that would
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who leaves early is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def admits(self, host: str) -> bool:
        """Whether a request for this host is meant for us: a name that was made to point here is not."""
        name, _, port = host.rpartition(":")
        if port != str(self.server_port):
            return False
        here = str(self.server_address[0])
        if name == here or (here in LOOPBACK and name in LOOPBACK):
            return True
        return ip_address(here).is_unspecified and _is_address(name.strip("[]"))

    @cached_property
    def index(self) -> list[Facts]:
        return [summary(entry) for entry in self.known.values()]

    def entry(self, name: str) -> str:
        """The page or the JSON file of an entry, made once."""
        id, _, kind = name.rpartition(".")
        if id not in self.known or kind not in ("html", "json"):
            raise Refused(404, "no such page; the index lists all")
        if name in self.pages:
            return self.pages[name]
        if id in self.failed and time.monotonic() < self.failed[id][1]:
            raise self.failed[id][0]
        if not self.making.acquire(timeout=PATIENCE):
            raise Refused(503, "other pages are being made; come back in a moment")
        try:
            if name not in self.pages:
                self._make(id)
            return self.pages[name]
        except Refused as refused:
            self.failed[id] = refused, time.monotonic() + AGAIN
            raise
        finally:
            self.making.release()

    def _make(self, id: str) -> None:
        found = isolated(partial(facts, self.known[id], self.known.references), PAGE)
        at = list(self.known).index(id)
        before, after = self.index[at - 1] if at else None, (*self.index, None)[at + 1]
        self.pages[f"{id}.html"] = site.entry_page(self.environment, found, before, after)
        self.pages[f"{id}.json"] = site.as_json(found)

    def derived(self, text: str, parameters: Mapping[str, Any]) -> Facts:
        """The facts of what was typed, in its turn."""
        if not self.queue.acquire(blocking=False):
            raise Refused(503, "two activations are being derived already; send yours again in a moment")
        try:
            with self.turn:
                return isolated(partial(typed, text, parameters), self.limits)
        finally:
            self.queue.release()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def fields(query: str) -> dict[str, str]:
    """What a form holds."""
    try:
        return {key: values[-1] for key, values in parse_qs(query, max_num_fields=4).items()}
    except ValueError:
        raise Refused(400, "expected the fields expr and parameters; use the form") from None


class Answer(NamedTuple):
    content: str | bytes
    kind: str = "html"  # of TYPES
    status: int = 200


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE
    server_version, sys_version = "dualcalc", ""

    def setup(self) -> None:
        """Whoever sends byte by byte is heard for so long and no longer; an answer may take its time."""
        super().setup()
        self.clock = threading.Timer(3 * PATIENCE, self.hear_no_more)
        self.clock.daemon = True
        self.clock.start()

    def hear_no_more(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        self.clock.cancel()
        super().finish()

    def do_GET(self) -> None:
        self.answer(self.get)

    def do_POST(self) -> None:
        self.answer(self.post)

    def answer(self, make: Callable[[], Answer]) -> None:
        """Send what `make` returns, or why not."""
        try:
            self.check_sender()
            answer = make()
        except Refused as refused:
            answer = Answer(self.page("refused.html", reason=refused.reason), status=refused.status)
        except Exception as error:
            reason = f"internal error, {type(error).__name__}: {error}; please report it"
            answer = Answer(self.page("refused.html", reason=reason), status=500)
        content = answer.content.encode() if isinstance(answer.content, str) else answer.content
        self.send_response(answer.status)
        text = "" if answer.kind == "woff2" else "; charset=utf-8"
        self.send_header("Content-Type", f"{TYPES[answer.kind]}{text}")
        self.send_header("Content-Length", str(len(content)))
        for name, value in POLICY.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def check_sender(self) -> None:
        """Only for this host, and only from its own pages, but for links to them."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not self.server.admits(host):
            raise Refused(421, f"this server is at {self.server.url}, and answers no other name")
        own = origin == f"http://{host}" or (origin is None and self.command == "GET")
        crossing = self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
        if not own or (crossing and self.headers.get("Sec-Fetch-Mode") != "navigate"):
            raise Refused(403, "the request came from another site, or says not from where; open the page itself")

    def get(self) -> Answer:
        try:
            asked = urlsplit(self.path)
        except ValueError:
            raise Refused(400, "that is no address; the index lists all pages") from None
        name = asked.path.removeprefix("/") or "index.html"
        if name == "live":
            known = fields(asked.query)
            return self.form(known.get("expr", ""), known.get("parameters", ""))
        if name == "index.html":
            return Answer(site.index_page(self.server.environment, self.server.index))
        if name == "index.json":
            return Answer(site.as_json(site.listing(self.server.index)), "json")
        made = ASSETS[name].read_bytes() if name in ASSETS else self.server.entry(name)
        return Answer(made, name.rpartition(".")[2])

    def post(self) -> Answer:
        if self.path != "/live":
            raise Refused(404, "nothing can be sent there")
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and len(length) < 9 else DISCARDED
        if size > MAX_FORM:
            while size > 0 and size < DISCARDED and (part := self.rfile.read(min(size, MAX_FORM))):
                size -= len(part)  # who is cut off while sending does not see why
            raise Refused(413, f"expected a form of at most {MAX_FORM} bytes; formulas have at most 500 characters")
        try:
            body = self.rfile.read(size)
        except TimeoutError:
            raise Refused(408, f"the form did not come within {PATIENCE:g} s") from None
        if len(body) < size:
            raise Refused(400, "the form ended early")
        known = fields(body.decode("utf-8", "replace"))
        text, parameters = known.get("expr", "").strip(), known.get("parameters", "").strip()
        if text in self.server.known and not parameters:
            return Answer(self.server.entry(f"{text}.html"))
        try:
            values = read_parameters(parameters)
            return self.form(text, parameters, self.server.derived(text, values), values)
        except ValueError as error:
            return self.form(text, parameters, error=str(error), status=422)
        except Refused as refused:
            return self.form(text, parameters, error=refused.reason, status=refused.status)

    def form(
        self,
        text: str,
        parameters: str,
        found: Facts | None = None,
        values: Mapping[str, Any] = {},
        error: str = "",
        status: int = 200,
    ) -> Answer:
        """The live page: what was typed, and what was found of it."""
        given = [f"{name}={','.join(v) if isinstance(v, list) else v}" for name, v in values.items()]
        command = ["dualcalc", "catalog", "new", "--folder", "mine", "--id", "my_activation", "--expression", text]
        command += [word for value in given for word in ("-p", value)]
        shown = f"mkdir -p mine && {shlex.join(command)}"
        link = "live?" + urlencode({"expr": text, "parameters": parameters})
        more = {"text": text, "parameters": parameters, "error": error, "command": shown, "link": link}
        context = {"e": found, "filters": site.FILTERS, "before": None, "after": None}
        return Answer(self.page("live.html", **context, **more), status=status)

    def page(self, name: str, **context: Any) -> str:
        return self.server.environment.get_template(name).render(seconds=self.server.limits.seconds, **context)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: it runs beside its user's prompt."""


ASSETS = {f"assets/{name.removeprefix('vendor/')}": site.TEMPLATES / name for name in (*site.ASSETS, *site.KATEX)}
