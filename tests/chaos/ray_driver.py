"""deploy/ray on a Ray of its own: a JSON job on stdin, the answers as the last line on stdout.

`ray start` and `ray stop` are for a whole machine; what this starts, it ends, and touches no other Ray. Four CPUs are
said to be there, whatever there is: Ray counts two for the replica and one for the ingress, and would wait for ever.
"""

import json
import shutil
import sys
import tempfile
from typing import Any

import httpx
import ray
import seta_on_ray
from ray import serve

SECONDS = 600


def answers(url: str, job: dict[str, Any]) -> dict[str, Any]:
    """`job`: chats and completions, each a request's body."""
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        return {
            "models": client.get("/v1/models").raise_for_status().json(),
            "chats": [client.post("/v1/chat/completions", json=body).json() for body in job["chats"]],
            "streams": [
                client.post("/v1/chat/completions", json=body | {"stream": True}).text for body in job["chats"]
            ],
            "completions": [client.post("/v1/completions", json=body).json() for body in job["completions"]],
        }


def main() -> None:
    job = json.load(sys.stdin)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets are in it
    environment = {"env_vars": {"PYTHONPATH": job["path"]}}
    ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, _temp_dir=folder, runtime_env=environment
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": job["port"]})
        serve.run(seta_on_ray.app(seta_on_ray.Settings(**job["settings"])), route_prefix="/")
        found = answers(f"http://127.0.0.1:{job['port']}", job)
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
