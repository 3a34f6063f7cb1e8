"""How many tokens a second ``rljax serve`` gives to one client, and to sixteen at once.

    python -m benchmarks.serving runs/0001 "283+759="

Each client asks for one response after another, over HTTP, with another seed each time.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai

ROUNDS = 3  # of which the best is told
SECONDS = 5.0  # of a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", help="the folder of a run or of a model")
    parser.add_argument("prompt")
    parser.add_argument("--rows", default="16")
    options = parser.parse_args()
    command = [sys.executable, "-c", "from rljax.serve import main; raise SystemExit(main())"]
    command += [options.target, "--port", "0", "--rows", options.rows]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            events = map(json.loads, server.stdout)
            url = next(event["url"] for event in events if event["event"] == "serving")
            for clients in (1, 16):
                best = max(tokens_per_second(url, options.prompt, clients) for _ in range(ROUNDS))
                print(f"{clients:2} at once, {options.rows} rows: {best:,.0f} tokens/s")
        finally:
            server.terminate()


def tokens_per_second(url: str, prompt: str, clients: int) -> float:
    """Of all clients together."""
    with openai.OpenAI(base_url=url, api_key="none") as client:
        model = client.models.list().data[0].id
        began = time.perf_counter()

        def ask(number: int) -> int:
            drawn, seed = 0, number
            while time.perf_counter() - began < SECONDS:
                reply = client.completions.create(model=model, prompt=prompt, seed=seed)
                drawn, seed = drawn + reply.usage.completion_tokens, seed + clients
            return drawn

        with ThreadPoolExecutor(clients) as pool:
            drawn = sum(pool.map(ask, range(clients)))
        return drawn / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
