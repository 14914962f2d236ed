"""Exit code 0 if the Ray node in this container answers, or if there is none to ask.

A stage that works on another machine's cluster is well as long as it runs.
"""

import urllib.request

import psutil

URL = "http://127.0.0.1:52365/api/local_raylet_healthz"

if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
    urllib.request.urlopen(URL, timeout=5).close()
