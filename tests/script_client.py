"""Stands in for `python` in a Workspace: hands the project's scripts to the server beside it (script_server.py).

Everything else runs in the real Python. A signal that ends this process does not reach the script.
"""

import _socket  # `socket` takes longer to import than all the rest
import array
import os
import sys

SCRIPTS = ("repro.py", "shard.py", "index.py", "heal_remote.py", "stub_edadm.py")

words = sys.argv[1:]
if not words or os.path.basename(words[0]) not in SCRIPTS:
    os.execv(sys.executable, [sys.executable, *words])
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect(f"{os.path.dirname(__file__)}/server")
server.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
environment = [f"{name}={value}" for name, value in os.environ.items()]
server.sendall("\0".join([*environment, "", os.getcwd(), *words]).encode(errors="surrogateescape"))
server.shutdown(_socket.SHUT_WR)
sys.exit(server.recv(1)[0])
