"""A folder to a hub: a server of this machine takes the place of Hugging Face's."""

import base64
import http.server
import json
import threading

import pytest
from huggingface_hub import constants

from jaxcls.errors import InputError
from jaxcls.export import pushing

TOKEN = "hf_" + "t" * 30
FILES = {
    "README.md": b"---\nlicense: mit\n---\nA card.\n",
    "config.json": b'{"architecture": "resnet18"}',
    "model.safetensors": bytes(range(256)) * 5,
}


class Hub(http.server.BaseHTTPRequestHandler):
    """What a hub answers to huggingface_hub that makes a repository and commits to it."""

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.asked.append((self.command, self.path, body))
        server.tokens.add(self.headers.get("Authorization"))
        status, answer = server.refused or (200, self.answered(body))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def answered(self, body):
        server, url = self.server, self.server.url
        match self.path.split("?")[0]:
            case "/api/repos/create":
                return {"url": f"{url}/org/name", "name": "org/name"}
            case "/api/models/org/name":
                return {"id": "org/name", "private": server.is_private}
            case "/api/validate-yaml":
                return {"errors": [], "warnings": []}
            case "/api/models/org/name/preupload/main":
                mode = {True: "lfs", False: "regular"}
                files = [each["path"] for each in json.loads(body)["files"]]
                told = [
                    {"path": x, "uploadMode": mode[x.endswith("tensors")]} for x in files
                ]
                return {"files": [{**each, "shouldIgnore": False} for each in told]}
            case "/org/name.git/info/lfs/objects/batch":
                found = json.loads(body)["objects"]
                for each in found:
                    each["actions"] = {"upload": {"href": f"{url}/stored/{each['oid']}"}}
                return {"transfer": "basic", "objects": found}
            case "/api/models/org/name/commit/main":
                made = {"commitUrl": f"{url}/org/name/commit/c0ffee", "success": True}
                return {**made, "commitOid": "c0ffee"}
        return {}

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The server, with which huggingface_hub of this process talks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.asked, server.tokens, server.refused = [], set(), None
    server.is_private = True
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # The library's.
@pytest.mark.parametrize(
    ("public", "seen"),
    [(False, "private"), (True, "public"), (True, "private")],  # The last was there before.
)
def test_a_folder_becomes_a_commit_in_a_repository(hub, folder, public, seen, capfd):
    hub.is_private = seen == "private"
    pushing.check("org/name")
    address = f"{hub.url}/org/name/commit/c0ffee"
    assert pushing.push(folder, "org/name", public) == (address, seen)
    bodies = {path.split("?")[0]: body for _, path, body in hub.asked}
    made = json.loads(bodies["/api/repos/create"])
    assert (made["name"], made["organization"]) == ("name", "org")
    assert made.get("private", made.get("visibility") == "private") is not public
    lines = bodies["/api/models/org/name/commit/main"].splitlines()
    kinds = [(each["key"], each["value"]) for each in map(json.loads, lines)]
    committed = {v["path"]: v for _, v in kinds if "path" in v}
    assert sorted(committed) == sorted(FILES)
    for name in ("README.md", "config.json"):
        assert base64.b64decode(committed[name]["content"]) == FILES[name]
    (stored,) = [body for kind, path, body in hub.asked if path.startswith("/stored/")]
    assert stored == FILES["model.safetensors"]
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in "".join(capfd.readouterr())
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_is_one_line_without_the_token(hub, folder, status, capfd):
    hub.refused = status, {"error": f"no: {TOKEN}"}
    with pytest.raises(InputError) as refused:
        pushing.push(folder, "org/name", False)
    said = str(refused.value)
    assert said.startswith(f"--push=org/name: {hub.url} fails (")
    command = f"hf upload org/name {folder} --private"
    assert said.endswith(f"{folder} is whole: `{command}` pushes it")
    assert str(status) in said
    assert "\n" not in said
    assert TOKEN not in said + "".join(capfd.readouterr())


def test_a_hub_that_is_not_there_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 fails .*is whole") as refused:
        pushing.push(folder, "org/name", False)
    assert "\n" not in str(refused.value)


def test_a_public_repository_gets_nothing_without_public(hub, folder):
    hub.is_private = False
    with pytest.raises(InputError, match="the repository is there and public") as refused:
        pushing.push(folder, "org/name", False)
    assert f"`hf upload org/name {folder}` pushes it there" in str(refused.value)
    assert not [path for _, path, _ in hub.asked if "commit" in path]


def test_names_and_tokens_are_looked_at_before_an_export(hub, monkeypatch, tmp_path):
    for name in ("name", "org/name/more", "org/na me", "org/name@main"):
        with pytest.raises(InputError, match=f"^--push={name} must be ORG/NAME"):
            pushing.check(name)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", tmp_path / "none")
    with pytest.raises(InputError, match=r"needs a token .* set HF_TOKEN"):
        pushing.check("org/name")
    assert not hub.asked
