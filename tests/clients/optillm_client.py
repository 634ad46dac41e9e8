"""optillm, a proxy that sends several requests to the server for each one that it gets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
from client_checks import MESSAGES, URL, check, same


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("optillm"))
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    command = [
        program,
        "--port",
        str(port),
        "--base-url",
        f"{URL}/v1",
        "--model",
        "tiny",
        "--approach",
        "bon",
        "--best-of-n",
        "2",
    ]
    proxy = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        with check("several responses"):
            client: Any = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            for _ in range(240):
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    time.sleep(0.5)
            reply = client.chat.completions.create(model="bon-tiny", messages=MESSAGES, max_tokens=12)
            same(bool(reply.choices[0].message.content), True)
    finally:
        proxy.terminate()
        proxy.wait(30)


if __name__ == "__main__":
    main()
