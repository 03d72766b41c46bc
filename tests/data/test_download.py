import functools
import http.server
import threading
import zipfile

import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import download, images, store

OPTIONS = {"image_size": 16, "download": True, "progress": False}


@pytest.fixture
def server(tmp_path):
    """Serves a folder on this machine; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_download_unpacks_and_prepares_the_archives(official, tmp_path, write, server, monkeypatch):
    folder, address = server
    write["official"](official, {"ISIC_V": "mel"}, "Validation")
    write["official"](official, {"ISIC_T": "df"}, "Test")
    for name in download.ARCHIVES:
        if name.endswith(".csv"):
            (folder / name).write_bytes((official / name).read_bytes())
            continue
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in (official / name.removesuffix(".zip")).iterdir():
                archive.write(path, path.relative_to(official))
    monkeypatch.setattr(download, "ARCHIVES_URL", address)
    examples = store.prepare(None, cache_dir=tmp_path / "cache", **OPTIONS)
    expected = store.prepare(official, cache_dir=tmp_path / "other", **OPTIONS)
    assert examples.digest == expected.digest
    assert len(examples.images) == 16
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(images, "decode", None)
    assert store.prepare(None, cache_dir=tmp_path / "cache", **OPTIONS).digest == expected.digest


@pytest.mark.parametrize("reachable", [False, True])
def test_offline_says_what_to_download_and_where_to_put_it(
    tmp_path, server, monkeypatch, reachable
):
    _, address = server  # serves an empty folder
    address = address if reachable else "http://127.0.0.1:9/"
    monkeypatch.setattr(download, "ARCHIVES_URL", address)
    with pytest.raises(UserError) as caught:
        store.prepare(None, cache_dir=tmp_path, **OPTIONS)
    message = str(caught.value)
    assert f"{address}ISIC2018_Task3_Training_Input.zip" in message
    assert f"{address}ISIC2018_Task3_Training_LesionGroupings.csv" in message
    assert "--config.data.dir=FOLDER" in message
