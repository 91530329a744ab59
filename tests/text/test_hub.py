"""The hub, played by a server of this machine: files once, and a clear refusal of what is not there."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from spectral_collapse.text import hub

COMMIT = "c" * 40
WHOLE = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "model.bin": b"pickle"}
SHARDS = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
REPOSITORIES = {
    "an/architecture": WHOLE,
    "a/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "in/shards": {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(SHARDS).encode(),
        "model-1.safetensors": b"1",
        "model-2.safetensors": b"2",
    },
}
# Asks for every (name, revision) and prints what came back; run with the hub's address in the environment.
ASK = """
import json, sys
from spectral_collapse.text import hub
answers = []
for name, revision in json.loads(sys.argv[1]):
    try:
        folder = hub.snapshot(name, revision, ("config.json", "*.safetensors"), also=("*.json",))
        answers.append(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
    except ValueError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/models/")
        if path.startswith("is/busy"):
            return self.reply(503)
        name = "/".join(path.split("/")[:2])
        what, revision, *file = path.removeprefix(name).removeprefix("/").split("/")
        files = REPOSITORIES.get(name)
        if files is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if revision != COMMIT:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        if what == "tree":
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            return self.reply(200, json.dumps(tree).encode())
        body = files["/".join(file)]
        return self.reply(200, body, ETag=f'"{hash(body)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def ask(server, tmp_path):
    def ask(*questions, endpoint=f"http://127.0.0.1:{server.server_port}"):
        """What each question gets, the requests that the hub met, and what was said."""
        environment = {
            **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        server.asked.clear()
        command = [sys.executable, "-c", ASK, json.dumps(questions)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout), list(server.asked), done.stderr

    return ask


def test_files_come_once_and_without_pickles(ask):
    (first, again, shards), asked, _ = ask(
        ("an/architecture", COMMIT), ("an/architecture", COMMIT), ("in/shards", COMMIT)
    )
    assert first == again == ["config.json", "model.safetensors", "tokenizer.json"]
    assert shards == sorted(REPOSITORIES["in/shards"])
    assert len([path for path in asked if path.endswith("an/architecture/resolve/" + COMMIT + "/config.json")]) <= 2
    (later,), asked, _ = ask(("an/architecture", COMMIT))
    assert later == first and asked == []  # what is on this machine needs no hub


def test_what_the_hub_has_not_is_told_apart(ask):
    answers, _, said = ask(("no/such", COMMIT), ("an/architecture", "d" * 40), ("a/pickle", COMMIT), ("/a/b/c", COMMIT))
    assert answers == [
        ["ValueError", "the hub has no model 'no/such' that this machine may read (status 404)"],
        ["ValueError", f"'an/architecture' has no revision {'d' * 40} on the hub"],
        [
            "ValueError",
            f"'a/pickle' has no *.safetensors at revision {COMMIT[:12]}; "
            "pytorch_model.bin is a pickle and is not opened",
        ],
        ["ValueError", "'/a/b/c' is no folder of this machine and cannot be a name on the hub"],
    ]
    assert "Retrying" not in said


def test_a_hub_that_does_not_answer_is_asked_once(ask):
    (busy,), asked, said = ask(("is/busy", COMMIT))
    wanted = f"config.json, *.safetensors of 'is/busy' at revision {COMMIT[:12]}: not on this machine, and "
    assert busy == ["Unreachable", wanted + "the hub answered with status 503"]
    assert len(asked) == 1 and "Retrying" not in said
    (closed,), _, said = ask(("is/busy", COMMIT), endpoint="http://127.0.0.1:9")
    assert closed == ["Unreachable", wanted + "the hub cannot be reached (ConnectError)"]
    assert "Retrying" not in said


def test_weights_that_are_not_whole_are_fetched_again(tmp_path):
    for name, body in REPOSITORIES["in/shards"].items():
        (tmp_path / name).write_bytes(body)
    needed = ("config.json", "*.safetensors")
    assert hub._complete(tmp_path, needed)
    (tmp_path / "model-2.safetensors").unlink()
    assert not hub._complete(tmp_path, needed)
    (tmp_path / "config.json").unlink()
    assert not hub._complete(tmp_path, ("config.json",))
