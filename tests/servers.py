"""Real servers of DVC's remotes on the loopback interface: OpenSSH with keys of its own, and rclone's S3."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = "/usr/sbin/sshd"  # OpenSSH insists on being called by its full path
RCLONE = Path(sys.executable).parent / "rclone"
S3_KEYS = ("an-access-key-of-the-test", "a-secret-key-of-the-test")
PATIENCE = 200  # looks, a tenth of a second apart, for a server to answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen]:
    """The server that ``command`` starts, from when it answers at ``port`` to the end of the block."""
    with log.open("a") as said, subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL) as server:
        try:
            for _ in range(PATIENCE):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield server
        finally:
            server.kill()


@contextmanager
def sshd(folder: Path) -> Iterator[dict[str, str]]:
    """An OpenSSH server that keeps ``folder``/store; DVC's settings of that remote."""
    folder.mkdir()
    store, port = folder / "store", free_port()
    store.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, gives up its privileges
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with served([SSHD, "-D", "-e", "-f", str(folder / "config")], port, folder / "log"):
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        yield {"url": f"ssh://{user}@127.0.0.1:{port}{store}", "keyfile": str(folder / "user")}


@contextmanager
def s3(folder: Path, port: int | None = None, *options: str) -> Iterator[tuple[dict[str, str], subprocess.Popen]]:
    """rclone's S3 server that keeps ``folder``/store/bucket; DVC's settings of that remote, and the server."""
    (folder / "store" / "bucket").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [str(RCLONE), "serve", "s3", str(folder / "store"), "--addr", f"127.0.0.1:{port}"]
    # hardly any cache of listings: a test damages objects behind the server's back; with 0s rclone spins in its timer
    command += ["--auth-key", ",".join(S3_KEYS), "--dir-cache-time", "100ms", "--config", os.devnull, *options]
    with served(command, port, folder / "log") as server:
        keys = dict(zip(("access_key_id", "secret_access_key"), S3_KEYS, strict=True))
        yield {"url": "s3://bucket/dvc", "endpointurl": f"http://127.0.0.1:{port}", **keys}, server
