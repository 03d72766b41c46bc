"""The page: the command as a user starts it, asked by a client and driven in a browser."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import skin_jax
from skin_jax.eval import calibration

pytestmark = pytest.mark.xdist_group("export")  # one worker makes `small_gan`, once

ROOT = Path(__file__).parents[1]

PNG = r'src="data:image/png;base64,([^"]*)"'

# The command, with a list of all addresses that it connects to or asks for.
WATCHED = """
import runpy, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        print("asked for", host, file=sys.stderr, flush=True)

sys.addaudithook(watch)
runpy.run_module("skin_jax.serve", run_name="__main__", alter_sys=True)
"""


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skin_jax.serve", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_extra_is_named_where_it_is_missing():
    program = (
        "import importlib.util, sys\n"
        "importlib.util.find_spec = lambda name: None\n"
        "sys.argv = ['serve', '--workdir=x']\n"
        "from skin_jax import serve\n"
        "serve.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the page needs Gradio; install the extra: pip install 'skin_jax[serve]'\n"
    )


def test_a_folder_has_to_be_given():
    done = command()
    assert done.returncode == 2
    assert done.stderr.startswith("error: give --workdir=DIR")


def test_runs_have_the_names_of_their_folders_where_these_differ(program):
    serve, _ = program("skin_jax.serve")
    given = ["runs/a", "runs/b", "runs/a", "other/b"]
    assert list(serve._named(given)) == ["a", "runs/b", "other/b"]


class Page(NamedTuple):
    url: str
    folder: Path  # of its home, working directory and temporary files
    said: Path
    process: subprocess.Popen[str]

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def run(small_gan):
    return skin_jax.load(small_gan)


@pytest.fixture(scope="module")
def page(small_gan, run, tmp_path_factory):
    """The page of a work folder, and of one that it was exported to, with a temperature."""
    pytest.importorskip("gradio")
    shipped = tmp_path_factory.mktemp("zoo") / "shipped"
    run.export(shipped)
    step = json.loads((small_gan / "eval" / "test" / "metrics.json").read_text())["step"]
    calibration.write(shipped, calibration.Calibration(3.0, 3.0, "val", 9, step), None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, said = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("said") / "stderr"
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(folder))
    with said.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", WATCHED, f"--workdir={small_gan}", f"--workdir={shipped}"),
                *(f"--port={port}", "--max_megabytes=1"),
            ],
            cwd=folder,
            env=os.environ | places | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(said.parent)},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line == f"the page: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", said.read_text()
        yield Page(f"http://127.0.0.1:{port}/", folder, said, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def client(page):
    from gradio_client import Client

    return Client(page.url, verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return path


def look(client, name: str, path: Path) -> str:
    from gradio_client import handle_file

    return client.predict(name, handle_file(path), api_name="/look")[-1]


def shares(html: str) -> list[float]:
    return [float(share) for share in re.findall(r"<b>([\d.]+)%</b></li>", html)]


def test_an_answer_has_the_probabilities_of_the_run_and_leaves_no_file(page, client, run, photo):
    found = look(client, "small", photo)
    expected = run.predict(photo)[0]
    assert f"Most likely: <b>{escape(run.classes.titles[expected.argmax()])}</b>" in found
    np.testing.assert_allclose(shares(found), sorted(100 * expected, reverse=True), atol=0.051)
    assert "not calibrated" in found
    assert 'src="data:image/png;base64,' in found  # its heat map
    assert "are calibrated" in look(client, "shipped", photo)
    assert page.files() == []


def test_another_run_is_asked_about_the_same_photo(page, photo):
    from gradio_client import Client

    client = Client(page.url, verbose=False)  # a visitor of whom nothing is remembered
    assert client.predict("small", api_name="/look_again") == ""
    found = look(client, "shipped", photo)
    assert look(client, "small", photo) != found


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.jpg", b"no image\n", "not an image that Pillow knows"),
        ("empty.png", b"", "not an image that Pillow knows"),
        ("large.png", (10_000, 9_000), "too large: more than"),
    ],
)
def test_what_is_no_photo_ends_in_a_sentence(page, client, tmp_path, name, content, said):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("1", content).save(path)
        assert path.stat().st_size < 10**6
    found = look(client, "small", path)
    assert "This file cannot be read as an image: " in found
    assert said in found
    assert found.endswith(".</p>")
    assert page.files() == []


def test_an_upload_that_is_too_large_is_refused(page):
    import httpx

    done = httpx.post(f"{page.url}gradio_api/upload", files={"files": ("a.bmp", bytes(2**20 + 1))})
    assert done.status_code == 413
    assert page.files() == []


def test_only_uploads_are_read_and_deleted(page, photo):
    import httpx

    given = {"path": str(photo), "meta": {"_type": "gradio.FileData"}}
    call = f"{page.url}gradio_api/call/look"
    event = httpx.post(call, json={"data": ["small", given]}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}").text
    assert answer.startswith("event: error")
    assert "Most likely" not in answer
    assert photo.exists()


def test_images_are_drawn_and_walked_between(client, run):
    found = client.predict("small", "", 5, 3, api_name="/draw")
    drawn = [Image.open(io.BytesIO(base64.b64decode(png))) for png in re.findall(PNG, found)]
    np.testing.assert_array_equal(np.stack(drawn), run.generate(n=5, seed=3))
    walked = client.predict("small", "", "", 3, api_name="/walk")
    assert len(re.findall(PNG, walked)) == 8
    with pytest.raises(Exception, match="greater than maximum value 32"):
        client.predict("small", "", 10**6, 3, api_name="/draw")


def test_the_page_asks_for_nothing_from_elsewhere_and_cleans_up(page, client, photo):
    look(client, "small", photo)
    asked = set(re.findall(r"asked for (.*)", page.said.read_text()))
    assert asked <= {"127.0.0.1", "localhost", "None"}


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, without a window, that lists what it loads."""
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """A function that opens the page on a screen of some width, and returns the browser."""

    def open_at(width: int):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(page.url)
        return browser

    return open_at


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def give(browser, path: Path) -> None:
    from selenium.webdriver.common.by import By

    chooser = (By.CSS_SELECTOR, "#photo input[type=file]")
    wait_for(browser, lambda: browser.find_elements(*chooser))
    browser.find_element(*chooser).send_keys(str(path))


def text_of(browser, part: str) -> str:
    return browser.execute_script(f"return document.querySelector('{part}')?.innerText ?? ''")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_photo_is_answered_in_the_browser(opened, width, photo, page):
    browser = opened(width)
    assert "no diagnosis" in wait_for(browser, lambda: text_of(browser, ".title"))
    give(browser, photo)
    assert wait_for(browser, lambda: "Most likely" in text_of(browser, "#answer"))
    side = "return document.documentElement.scrollWidth"
    assert browser.execute_script(side) <= width
    browser.execute_script("[...document.querySelectorAll('button[role=tab]')].at(-1).click()")
    wait_for(browser, lambda: browser.execute_script("return !!document.querySelector('#draw')"))
    browser.execute_script("document.querySelector('#draw').click()")
    assert wait_for(browser, lambda: "Generated" in text_of(browser, "#drawn"))
    assert browser.execute_script(side) <= width
    assert page.files() == []


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("text.jpg", "#answer", "This file cannot be read as an image: not an image"),
        ("text.txt", "body", "Invalid file type: text.txt. Only image/* allowed."),
    ],
)
def test_a_text_file_is_answered_with_a_sentence(opened, tmp_path, name, part, said):
    (tmp_path / name).write_text("no image\n")
    browser = opened(390)
    give(browser, tmp_path / name)
    assert wait_for(browser, lambda: said in text_of(browser, part))


def test_the_browser_loads_nothing_from_elsewhere(opened, photo, page):
    browser = opened(1280)
    browser.get_log("performance")  # of before, among it the browser's own
    browser.get(page.url)
    give(browser, photo)
    wait_for(browser, lambda: "Most likely" in text_of(browser, "#answer"))
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert page.url in asked
    assert [url for url in asked if not url.startswith((page.url, "data:", "blob:"))] == []


def test_a_port_in_use_is_named(page, small_gan):
    port = page.url.rstrip("/").rpartition(":")[2]
    done = command(f"--workdir={small_gan}", f"--port={port}")
    assert done.returncode == 2
    assert f"error: 127.0.0.1:{port} cannot be listened at" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_end_of_the_page_removes_its_folder(page):
    """Stands last: the page is over then."""
    assert [path.name[:9] for path in page.folder.iterdir()] == ["skin_jax-"]
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait() == 0
    assert list(page.folder.iterdir()) == []
