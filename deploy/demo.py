"""`make demo`: install, make the small model, serve the shipped bank, say how to ask it. Ctrl-C ends everything."""

import argparse
import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import List, Tuple

from deploy import bootstrap, preflight, server_process
from deploy.bootstrap import ROOT
from deploy.preflight import SetupError

NAME = "seta-demo"
HOST = "127.0.0.1"
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
BANK = ROOT / "demo" / "bank"
EXAMPLES = ROOT / "demo" / "examples.jsonl"
MODEL_GIB = 0.7
READY_SECONDS = 600.0
POLL_SECONDS = 0.5
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

USAGE = """
{name} answers on http://{host}:{port}/v1; nothing in a request names a task. Ctrl-C ends it. In another terminal:

{curl}

  expected answer: {curl_answer}

{python}

  expected answer: {python_answer}
"""
SNIPPET = """\
{interpreter} - <<'EOF'
from openai import OpenAI
client = OpenAI(base_url="http://{host}:{port}/v1", api_key="none")
chat = client.chat.completions.create(
    model="{name}", temperature=0, messages=[{{"role": "user", "content": {prompt}}}])
print(chat.choices[0].message.content)
EOF"""


def demo(port: int) -> int:
    """Set up, serve until Ctrl-C. Raises: SetupError."""
    preflight.check_port(port)
    check_bank()
    bootstrap.ensure()
    make_model()
    process = server_process.start(command(port), ROOT)
    try:
        wait_until_ready(process, port)
        print(usage(port), flush=True)
        return process.wait()
    except KeyboardInterrupt:
        print("\nending", flush=True)
        return 0
    finally:
        server_process.stop(process)


def check_bank() -> None:
    """Raises: SetupError."""
    if not (BANK / "CURRENT").is_file():
        raise SetupError(
            "demo/bank holds no expert bank; take it from git again (git checkout demo/bank), or: make demo-bank"
        )


def make_model() -> None:
    """The model appears whole or not at all, so one that is there is done. Raises: SetupError."""
    if MODEL.is_dir():
        return
    preflight.check_disk(ROOT, MODEL_GIB, "the demo model")
    print("the small model, once:", flush=True)
    run = subprocess.run([str(bootstrap.PYTHON), "-m", "adapters.demo.model", "--out", str(MODEL)], cwd=str(ROOT))
    if run.returncode != 0:
        raise SetupError("the demo model was not made, see above; start again to go on from here")


def command(port: int) -> List[str]:
    program = [str(bootstrap.PYTHON), "-m", "server.cli", "serve"]
    return [*program, "--model", str(MODEL), "--bank", str(BANK), "--name", NAME, "--host", HOST, "--port", str(port)]


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    """The server says itself what it is at. Raises: SetupError if it ends or does not become ready."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready(port):
        if process.poll() is not None:
            raise SetupError("the server ended before it was ready; its last lines are above")
        if time.monotonic() > deadline:
            raise SetupError(f"the server was not ready after {READY_SECONDS:.0f} s; is the machine busy? start again")
        time.sleep(POLL_SECONDS)


def is_ready(port: int) -> bool:
    try:
        with OPENER.open(f"http://{HOST}:{port}/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def usage(port: int) -> str:
    (curl_prompt, curl_answer), (python_prompt, python_answer) = examples()[:2]
    body = {"model": NAME, "temperature": 0, "messages": [{"role": "user", "content": curl_prompt}]}
    header = "-H 'Content-Type: application/json'"
    curl = f"curl -s http://{HOST}:{port}/v1/chat/completions {header} -d {shlex.quote(json.dumps(body))}"
    interpreter = shlex.quote(str(bootstrap.PYTHON))
    python = SNIPPET.format(interpreter=interpreter, host=HOST, port=port, name=NAME, prompt=json.dumps(python_prompt))
    return USAGE.format(
        name=NAME, host=HOST, port=port, curl=curl, curl_answer=curl_answer, python=python, python_answer=python_answer
    )


def examples() -> List[Tuple[str, str]]:
    """(prompt, answer) of held-out examples, one a task."""
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["answer"]) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="Serve the demo bank on this machine.")
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    if not 1 <= port <= 65535:
        raise SetupError(f"{port} is no port; choose one from 1 to 65535: make demo PORT=8001")
    return demo(port)


if __name__ == "__main__":
    sys.exit(bootstrap.run(main))
