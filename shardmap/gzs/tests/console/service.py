"""A made-up Global Zone Service on a loopback port: the console's files, and whatever state a scene has."""

import http.server
import json
import os
import threading
import time
import urllib.parse

# The strictest policy under which the page has to work; the page names the same itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
FILES = {"/": ("index.html", "text/html"), "/console.js": ("console.js", "text/javascript"), "/console.css": ("console.css", "text/css")}
AUDIT_PAGE = 25


class Service:
    """Serves `scene`, which may be changed at any time; `asked`: the paths since the page was opened, in order, `ever`: all."""

    def __init__(self, folder):
        self.folder, self.scene, self.asked, self.ever = folder, None, [], set()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                answer(service, self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # a browser that went away in the middle

        self.server = Server(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, path):
        return self.asked.count(path)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def answer(service, request):
    """One request: a file of the page, or what the scene says."""
    url, scene = urllib.parse.urlsplit(request.path), service.scene
    service.asked.append(url.path)
    service.ever.add(url.path)
    if url.path in FILES:
        name, kind = FILES[url.path]
        with open(os.path.join(service.folder, name), "rb") as file:
            return send(request, 200, file.read(), kind + "; charset=utf-8")
    if scene.mode == "down":
        return drop(request)
    if scene.mode == "silent":
        time.sleep(20)
        return drop(request)
    if scene.mode == "fault":
        return send(request, 503, {"error": "the store is locked by another process, expected none; end it"})
    if scene.mode == "nonsense":
        return send(request, 200, b"<html>a proxy says hello", "text/html")
    if scene.mode == "other":
        return send(request, 200, {"hello": "world"})
    if scene.token and request.headers.get("authorization") == "Bearer node-only":
        return send(request, 403, {"error": "this token has the role node, expected read"})
    if scene.token and request.headers.get("authorization") != f"Bearer {scene.token}":
        return send(request, 401, {"error": "no token that is known, expected one with the role read"})
    if url.path == "/v1/state":
        return send(request, 200, scene.state)
    if url.path == "/v1/fences":
        return send(request, 500, {"error": "no fences today"}) if scene.fences is None else send(request, 200, scene.fences)
    if url.path == "/v1/audit":
        after = int(urllib.parse.parse_qs(url.query).get("after", ["0"])[0])
        later = sorted((a for a in scene.audit if a["epoch"] > after), key=lambda a: a["epoch"])
        return send(request, 200, later[:AUDIT_PAGE])
    send(request, 404, {"error": f"no such path: {url.path}"})


def drop(request):
    request.close_connection = True
    request.connection.close()


def send(request, status, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    for name, value in (("content-type", kind), ("content-length", str(len(data))), ("content-security-policy", POLICY), ("x-content-type-options", "nosniff")):
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)
