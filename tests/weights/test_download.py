"""Downloads: verified, atomic, shared by processes, with a way out where there is no network."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import threading

import pytest

from keras_seg.weights.download import DownloadFailed, cache_folder, fetch

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KERAS_SEG_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server():
    """A web server: /model.pkl is whole, /short.pkl breaks off, everything else is missing; counts requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.requests += 1
            if self.path not in ("/model.pkl", "/short.pkl"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/model.pkl" else CONTENT[:1000])

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def nothing_left(home) -> bool:
    return not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8], None])
def test_a_file_is_downloaded_once_and_pinned(server, home, sha256, capsys):
    path = fetch(f"{server.url}/model.pkl", sha256, progress=True)
    assert path.read_bytes() == CONTENT and home in path.parents
    assert path.with_name("model.pkl.sha256").read_text().strip() == DIGEST
    assert "downloading model.pkl" in capsys.readouterr().err
    assert fetch(f"{server.url}/model.pkl", sha256) == path
    assert server.requests == 1


def test_a_wrong_digest_keeps_nothing(server, home):
    with pytest.raises(
        ValueError, match=r"model.pkl: damaged or exchanged: .*the recipe is 0{64}; nothing was kept"
    ):
        fetch(f"{server.url}/model.pkl", "0" * 64)
    assert nothing_left(home)


def test_a_truncated_download_keeps_nothing(server, home):
    with pytest.raises(
        DownloadFailed, match=r"short.pkl: the download broke off at 1000 of 1280000 bytes. Put the"
    ):
        fetch(f"{server.url}/short.pkl")
    assert nothing_left(home)


def test_a_missing_address_and_no_network(server, home):
    with pytest.raises(
        DownloadFailed, match=r"other.pkl: the download failed .*404.* Put the file .* at .*other.pkl"
    ):
        fetch(f"{server.url}/other.pkl")
    with pytest.raises(DownloadFailed, match=r"refused.*weights=None"):
        fetch("http://127.0.0.1:9/model.pkl")
    assert nothing_left(home)


def test_offline_names_the_file_to_put_where(server, home, monkeypatch):
    monkeypatch.setenv("KERAS_SEG_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError, match="KERAS_SEG_OFFLINE forbids to download. Put the file of"
    ) as error:
        fetch(f"{server.url}/model.pkl", DIGEST[:8])
    assert server.requests == 0
    place = home / "downloads/model.pkl"
    assert str(place) in str(error.value)
    place.write_bytes(CONTENT)  # what the message asks for
    assert fetch(f"{server.url}/model.pkl", DIGEST[:8]) == place


def test_a_file_that_changed_since_is_noticed(server):
    path = fetch(f"{server.url}/model.pkl")
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(ValueError, match=r"that of the first download is .*delete it to download it again"):
        fetch(f"{server.url}/model.pkl")
    assert path.read_bytes() == CONTENT + b"!"


def _fetch(url: str, queue) -> None:
    queue.put(fetch(url, DIGEST).read_bytes() == CONTENT)


def test_processes_that_ask_at_once_share_one_download(server):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_fetch, args=(f"{server.url}/model.pkl", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=120) for _ in processes] == [True] * 3
    for process in processes:
        process.join()
    assert server.requests == 1


def test_a_digest_that_is_none(server):
    with pytest.raises(ValueError, match="must be 6 to 64 hexadecimal digits"):
        fetch(f"{server.url}/model.pkl", "xyz")


def test_the_cache_is_the_users_unless_told(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "home"
    monkeypatch.delenv("KERAS_SEG_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache/keras_seg"
