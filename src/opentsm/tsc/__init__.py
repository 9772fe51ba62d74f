"""The tunnel service client (TSC) with the call names of US patent 9,444,792, on top of ``opentsm.connect``.

The calls are synchronous and may be used from any thread; tunnels live in an event loop in their own thread.
As in C, calls answer with numbers: 0 done, 1 not done for options and notifications; 0 and -1 for the socket
calls. Only ``tsc_new_tunnel`` raises, because a program must be able to say why there is no tunnel.
docs/sdk.md has the patent's text beside these calls.

    handle = tsc_new_tunnel("tls://host:443", username="alice", password="...")
    rtp = tsc_socket(handle, AF_INET, SOCK_DGRAM)
    tsc_notification_enable(handle, tsc_notification_ddt, callback, opaque)
    tsc_setsockopt(rtp, SOL_SOCKET, TSC_SO_DDT, 1)     # 0: set, though not in force before the DDT is there
    tsc_bind(rtp, ("", 40000))                         # this asks the server for the DDT
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET

from opentsm.tsc.calls import (
    TSC_SO_CODING,
    TSC_SO_DDT,
    TSC_SO_PATH,
    TSC_SO_REDUNDANCY,
    TSC_SO_TRANSPORT,
    tsc_accept,
    tsc_bind,
    tsc_close,
    tsc_connect,
    tsc_delete_tunnel,
    tsc_get_config,
    tsc_getsockname,
    tsc_getsockopt,
    tsc_init,
    tsc_listen,
    tsc_new_tunnel,
    tsc_notification_disable,
    tsc_notification_enable,
    tsc_recv,
    tsc_recvfrom,
    tsc_send,
    tsc_sendto,
    tsc_setsockopt,
    tsc_shutdown,
    tsc_socket,
)
from opentsm.tsc.notify import (
    tsc_notification_data,
    tsc_notification_ddt,
    tsc_notification_pair_missing,
    tsc_notification_tunnel,
)
from opentsm.tsc.runtime import TscConfig

__all__ = [
    "AF_INET",
    "AF_INET6",
    "SOCK_DGRAM",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "TSC_SO_CODING",
    "TSC_SO_DDT",
    "TSC_SO_PATH",
    "TSC_SO_REDUNDANCY",
    "TSC_SO_TRANSPORT",
    "TscConfig",
    "tsc_accept",
    "tsc_bind",
    "tsc_close",
    "tsc_connect",
    "tsc_delete_tunnel",
    "tsc_get_config",
    "tsc_getsockname",
    "tsc_getsockopt",
    "tsc_init",
    "tsc_listen",
    "tsc_new_tunnel",
    "tsc_notification_data",
    "tsc_notification_ddt",
    "tsc_notification_disable",
    "tsc_notification_enable",
    "tsc_notification_pair_missing",
    "tsc_notification_tunnel",
    "tsc_recv",
    "tsc_recvfrom",
    "tsc_send",
    "tsc_sendto",
    "tsc_setsockopt",
    "tsc_shutdown",
    "tsc_socket",
]
