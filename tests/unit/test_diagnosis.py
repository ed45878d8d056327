"""Messages as the servers and the loader really wrote them, and the sentence that they become."""

from pathlib import Path

import pytest

from app.embedded.diagnosis import explain

MONGOD_FULL = (
    '{"s":"E",  "c":"WT","msg":"WiredTiger error message","attr":{"error":28,"message":{"msg":"__posix_file_write:621:d/_mdb_catalog.wt: '
    'handle-write: pwrite: failed to write 4096 bytes at offset 0","error_str":"No space left on device","error_code":28}}}'
)
MONGOD_LOCKED = (
    '"error":"DBPathInUse: Unable to lock the lock file: d3/mongod.lock (Resource temporarily unavailable). '
    'Another mongod instance is already running on the d3 directory"'
)
MONGOD_READ_ONLY = (
    '"error":"DBPathInUse: Unable to create/open the lock file: rod/mongod.lock (Read-only file system). Ensure the user executing mongod is '
    "the owner of the lock file and has the appropriate permissions. Also make sure that another mongod instance is not already running on the "
    'rod directory"'
)


@pytest.mark.parametrize(
    ("code", "log", "sentence"),
    [
        (
            1,
            "# Error trying to write the temporary AOF manifest file temp-appendonly.aof.manifest: No space left on device",
            "disk of /data is full",
        ),
        (-6, MONGOD_FULL, "disk of /data is full"),
        (100, MONGOD_LOCKED, "another mongod uses the data in /data"),
        (100, MONGOD_READ_ONLY, "/data cannot be written"),
        (1, "# Can't open or create append-only dir appendonlydir: Read-only file system", "/data cannot be written"),
        (48, '"error":{"code":9001,"codeName":"SocketException","errmsg":"Address already in use"}', "port 7 is taken"),
        (1, "# Warning: Could not create server TCP listening socket 127.0.0.1:7: bind: Address already in use", "port 7 is taken"),
        (1, "# Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup", "the data in /data is damaged"),
        (
            127,
            "/bin/mongod: error while loading shared libraries: libssl.so.3: cannot open shared object file: No such file or directory",
            "libssl3",
        ),
        (1, "/bin/mongod: /lib/libc.so.6: version `GLIBC_2.34' not found (required by /bin/mongod)", "it needs GLIBC 2.34"),
        (127, "cannot run /bin/mongod: No such file or directory", "/bin/mongod does not run on this system"),
        (126, "cannot run /bin/mongod: Exec format error", "/bin/mongod does not run on this system"),
        (-4, "", "AVX"),
        (-9, "", "ran out of memory"),
    ],
)
def test_a_known_failure_becomes_one_sentence_with_a_remedy(code, log, sentence):
    told = explain(code, log, binary=Path("/bin/mongod"), folder=Path("/data"), port=7)

    assert sentence in told
    assert ": " in told, "what is wrong, then the remedy"
    assert "\n" not in told


@pytest.mark.parametrize("code", [None, 0, 1, 14])
def test_an_unknown_failure_is_left_to_the_log(code):
    assert explain(code, "something new", binary=Path("/bin/mongod"), folder=Path("/data"), port=7) is None
