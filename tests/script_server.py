"""The project's scripts in forks of a process that has imported DVC, which takes most of their time.

script_server.py FOLDER     serve the `python` in FOLDER until standard input ends
"""

import gc
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

CLIENT = Path(__file__).with_name("script_client.py")
# with what DVC imports when it comes to it
IMPORTED = (
    *("dvc.cli.parser", "dvc.lock", "dvc.repo.datasets", "dvc.repo.index", "dvc.repo.plots", "dvc.repo.reproduce"),
    *("dvc.rwlock", "dvc.scm", "edadm.processes", "networkx", "psutil", "pyparsing", "ruamel.yaml", "yaml"),
)


@contextmanager
def python_in(folder: Path) -> Iterator[None]:
    """A `python` in a folder that has the scripts run here, to the end of the block."""
    (folder / "python").write_text(f"#!{sys.executable} -IS\n{CLIENT.read_text()}")
    (folder / "python").chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server:  # which ends with its standard input
        server.stdout.readline()  # it answers now
        yield


def serve(folder: Path) -> None:
    """Run one script for each connection, and answer with its exit code."""
    for name in IMPORTED:
        import_module(name)
    sys.modules["dvc.cli.parser"].get_main_parser()  # DVC keeps it
    gc.freeze()  # none of it is garbage in any fork
    running = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen()
        print(flush=True)
        while sys.stdin not in (ready := wait([sys.stdin, listener, *running])):
            for each in ready:
                if each is listener:
                    connection, _ = listener.accept()
                    process = get_context("fork").Process(target=run, args=(connection,))
                    process.start()
                    running[process.sentinel] = process, connection
                else:
                    process, connection = running.pop(each)
                    process.join()
                    with connection, suppress(BrokenPipeError):  # whoever asked for it may have been killed
                        connection.sendall(bytes([process.exitcode % 256]))


def run(connection: socket.socket) -> None:
    """A script with the environment, folder, arguments and standard streams of the one who asks for it."""
    with connection:
        _, streams, *_ = socket.recv_fds(connection, 1, 3)
        asked = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode(errors="surrogateescape")
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    environment, _, called = asked.partition("\0\0")
    folder, *sys.argv = called.split("\0")
    os.environ.clear()
    os.environ.update(line.split("=", 1) for line in environment.split("\0"))
    os.chdir(folder)
    sys.path[0] = str(Path(sys.argv[0]).parent.absolute())
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
