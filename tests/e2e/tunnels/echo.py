"""A UDP echo for tests: `python echo.py ADDRESS PORT`. Ends with the host it runs in."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    echo = socket.socket(family, socket.SOCK_DGRAM)
    echo.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: a late turn must lose nothing
    echo.bind((address, port))
    print("ready", flush=True)
    while True:
        data, source = echo.recvfrom(4096)
        echo.sendto(data, source)


if __name__ == "__main__":
    main()
