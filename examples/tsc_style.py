"""The same as the patent's text tells it: option, notification, bind, and the media is on the DDT.

python tsc_style.py tls://host:443 ca.pem [user password]
"""

from __future__ import annotations

import sys
import threading
from ipaddress import ip_network

from opentsm.client.testcall import ECHO_PORT
from opentsm.tsc import (
    AF_INET,
    SOCK_DGRAM,
    SOL_SOCKET,
    TSC_SO_DDT,
    tsc_bind,
    tsc_delete_tunnel,
    tsc_get_config,
    tsc_new_tunnel,
    tsc_notification_data,
    tsc_notification_ddt,
    tsc_notification_disable,
    tsc_notification_enable,
    tsc_recvfrom,
    tsc_sendto,
    tsc_setsockopt,
    tsc_shutdown,
    tsc_socket,
)

enabled = threading.Event()


def on_ddt(data: tsc_notification_data) -> None:
    print(f"DDT: available {data.available}, enabled {data.enabled}, opaque {data.opaque!r}")
    if data.enabled or not data.available:
        enabled.set()


def main(server: str, ca: str, username: str | None = None, password: str | None = None) -> None:
    handle = tsc_new_tunnel(server, ca=ca, username=username, password=password)
    config = tsc_get_config(handle)
    assert config is not None
    network = ip_network(f"{config.inner_addresses[0]}/{config.prefix_lengths[0]}", strict=False)
    echo = (config.sip_server[0] if config.sip_server else str(network[1]), ECHO_PORT)

    rtp = tsc_socket(handle, AF_INET, SOCK_DGRAM)
    notification = tsc_notification_enable(handle, tsc_notification_ddt, on_ddt, "my own pointer")
    if tsc_setsockopt(rtp, SOL_SOCKET, TSC_SO_DDT, 1) == 1:
        raise SystemExit("the option was not set")
    tsc_bind(rtp, ("", 0))  # this sends the Service Request
    enabled.wait(10)

    tsc_sendto(rtp, b"media", echo)
    print(tsc_recvfrom(rtp, timeout=5))
    tsc_notification_disable(notification)
    tsc_delete_tunnel(handle)
    tsc_shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
