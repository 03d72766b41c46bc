"""Eight people at once at the page of `skin_jax.serve`, for a minute: does each get each answer?

python -m skin_jax.serve --workdir=RUN                      # in one terminal
python -m benchmarks.page_load --users 8 --seconds 60       # in another: prints one line of JSON

Each user sends a photo of noise, waits for the answer, and sends the next one. A request is lost
where no answer comes, or none with probabilities. Only a page on this machine is asked.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image


def main(argv: Sequence[str] | None = None) -> None:
    """Prints how many requests were sent and lost, and how long answers took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--run", help="name of the run; where the page has one, that")
    arguments = parser.parse_args(argv)
    url = f"http://127.0.0.1:{arguments.port}"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.users) as pool:
        clients = [Client(url, verbose=False) for _ in range(arguments.users)]
        run = arguments.run or _first_run(clients[0])
        end = time.monotonic() + arguments.seconds
        users = [
            pool.submit(_use, client, run, Path(folder) / f"{number}.jpg", end)
            for number, client in enumerate(clients)
        ]
        found = [seconds for user in users for seconds in user.result()]
    answered = [seconds for seconds in found if seconds is not None]
    print(
        json.dumps(
            {
                "users": arguments.users,
                "requests": len(found),
                "lost": len(found) - len(answered),
                "median_s": round(float(np.median(answered)), 3) if answered else None,
                "slowest_s": round(max(answered), 3) if answered else None,
            }
        )
    )


def _first_run(client: Client) -> str:
    parameters = client.view_api(return_format="dict", print_info=False)
    first = parameters["named_endpoints"]["/look"]["parameters"][0]
    return str(first["parameter_default"])


def _use(client: Client, run: str, photo: Path, end: float) -> list[float | None]:
    """Seconds until each answer of one user; None of a request that was lost."""
    rng = np.random.default_rng(int(photo.stem))
    Image.fromarray(rng.integers(0, 256, (768, 1024, 3), np.uint8)).save(photo)
    found: list[float | None] = []
    while (start := time.monotonic()) < end:
        try:
            answer = client.predict(run, handle_file(photo), api_name="/look")
            good = "Most likely" in str(answer)
        except Exception as error:  # whatever it was, the request is lost
            print(f"lost: {type(error).__name__}: {error}", flush=True)
            good = False
        found.append(time.monotonic() - start if good else None)
    return found


if __name__ == "__main__":
    main()
