"""A native service: counts how often it was asked, over restarts, and says what it is allowed."""

import errno
import http.server
import json
import os
import sys

RUNTIME = os.environ["CORACLE_RUNTIME"]
ARTIFACT = os.environ["CORACLE_ARTIFACT"]
COUNT = os.path.join(RUNTIME, "count")
VERSION = open(os.path.join(ARTIFACT, "version"), encoding="utf-8").read().strip()


def attempt(path):
    """Tries to write there; what the kernel says."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write("x")
        return "written"
    except OSError as error:
        return errno.errorcode[error.errno]


class Handler(http.server.BaseHTTPRequestHandler):
    """One answer for each path."""

    def do_GET(self):  # pylint: disable=invalid-name
        """Answers."""
        answer = {
            "/ready": lambda: "sick" if VERSION == "sick" else "ready",
            "/count": self.count,
            "/version": lambda: f"{os.environ['GREETING']}: {VERSION} as {os.getuid()}",
            "/write": lambda: json.dumps(
                {
                    "artifact": attempt(os.path.join(ARTIFACT, "new")),
                    "root": attempt("/etc/new"),
                    "runtime": attempt(os.path.join(RUNTIME, "new")),
                }
            ),
        }.get(self.path, lambda: "nothing")()
        self.send_response(503 if answer == "sick" else 200)
        self.end_headers()
        self.wfile.write(answer.encode())

    @staticmethod
    def count():
        """One more."""
        known = open(COUNT, encoding="utf-8").read() if os.path.exists(COUNT) else "0"
        with open(COUNT, "w", encoding="utf-8") as file:
            file.write(str(int(known) + 1))
        return str(int(known) + 1)

    def log_message(self, *_arguments):
        """Says nothing."""


if VERSION == "crash":
    sys.exit("crashes as told")
with open("/run/coracle/config.json", encoding="utf-8") as config:
    PORT = json.load(config)["port"]
print(f"version {VERSION} listens on {PORT}", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
