"""The state machines of a session as tables, and the function that draws them.

A table maps (state, input) to a Row: the next state and the name of the handler that the session
runs after the state has changed (empty: nothing to do). Every pair that is not written down is
deliberately ignored: ``complete`` fills it with IGNORED, so that a look-up cannot miss. A handler may
feed further inputs; the table is the only place where a state changes.

Which input a message or a timer becomes is decided in client.py, client_ddt.py, client_streams.py and their
siblings of the server; nothing here knows about messages, time or sockets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar


@dataclass(frozen=True, slots=True)
class Row:
    """What happens on one input in one state.

    Args:
        next: state afterwards.
        handler: method that runs then; empty = none.
        ignored: the pair was left out of the table on purpose.
    """

    next: enum.Enum
    handler: str = ""
    ignored: bool = False


Table = Mapping[tuple[enum.Enum, enum.Enum], Row]
S = TypeVar("S", bound=enum.Enum)
I = TypeVar("I", bound=enum.Enum)  # noqa: E741


def complete(states: Iterable[S], inputs: Iterable[I], rows: dict[tuple[S, I], Row]) -> Table:
    """The rows, and an explicit "stay, do nothing" for every other pair."""
    table: dict[tuple[enum.Enum, enum.Enum], Row] = {}
    inputs = tuple(inputs)
    for state in states:
        for given in inputs:
            table[state, given] = rows.get((state, given), Row(state, ignored=True))
    return table


class Client(enum.Enum):
    """Life of a client's session."""

    CONNECTING = "connecting"
    CONFIGURING = "configuring"
    ACTIVE = "active"
    PERSISTENT = "persistent"
    RESUMING = "resuming"
    RECONFIGURING = "reconfiguring"
    RELEASING = "releasing"
    CLOSED = "closed"


class ClientInput(enum.Enum):
    STREAM_READY = "stream ready"
    CONNECT_FAILED = "connect failed"
    GRANTED = "configuration granted"
    REFUSED = "configuration refused for good"
    REFUSED_FOR_NOW = "configuration refused for now"
    RESUME_REFUSED = "resume refused"
    STREAM_LOST = "stream lost"
    NO_ANSWER = "no answer in time"
    SERVER_RELEASED = "release request"
    SERVER_STOPPING = "release request, shutting down"
    CLOSE = "application closes"
    RELEASE_ANSWERED = "release answered"
    NETWORK_CHANGED = "network changed"


def _client_rows() -> dict[tuple[Client, ClientInput], Row]:
    s, i = Client, ClientInput
    rows = {
        (s.CONNECTING, i.STREAM_READY): Row(s.CONFIGURING, "send_configuration"),
        (s.CONNECTING, i.CONNECT_FAILED): Row(s.CLOSED, "end"),
        (s.CONNECTING, i.CLOSE): Row(s.CLOSED, "end"),
        (s.CONFIGURING, i.GRANTED): Row(s.ACTIVE, "tunnel_up"),
        (s.ACTIVE, i.STREAM_LOST): Row(s.PERSISTENT, "lose_stream"),
        (s.ACTIVE, i.NO_ANSWER): Row(s.PERSISTENT, "drop_stream"),
        (s.ACTIVE, i.SERVER_RELEASED): Row(s.CLOSED, "end"),
        (s.ACTIVE, i.SERVER_STOPPING): Row(s.PERSISTENT, "drop_stream"),
        (s.ACTIVE, i.CLOSE): Row(s.RELEASING, "send_release"),
        (s.ACTIVE, i.NETWORK_CHANGED): Row(s.ACTIVE, "look_for_another"),
        (s.ACTIVE, i.STREAM_READY): Row(s.RESUMING, "move"),
        (s.ACTIVE, i.CONNECT_FAILED): Row(s.ACTIVE, "look_again"),
        (s.PERSISTENT, i.STREAM_READY): Row(s.RESUMING, "send_resume"),
        (s.PERSISTENT, i.CONNECT_FAILED): Row(s.PERSISTENT, "reconnect"),
        (s.PERSISTENT, i.CLOSE): Row(s.CLOSED, "end"),
        (s.PERSISTENT, i.NETWORK_CHANGED): Row(s.PERSISTENT, "look_for_another"),
        (s.RESUMING, i.GRANTED): Row(s.ACTIVE, "resumed"),
        (s.RESUMING, i.RESUME_REFUSED): Row(s.RECONFIGURING, "send_configuration"),
        (s.RECONFIGURING, i.GRANTED): Row(s.ACTIVE, "tunnel_up"),
        (s.RECONFIGURING, i.RESUME_REFUSED): Row(s.PERSISTENT, "drop_stream"),
        (s.CLOSED, i.STREAM_READY): Row(s.CLOSED, "close_stray_stream"),
    }
    for given in (i.REFUSED, i.REFUSED_FOR_NOW, i.RESUME_REFUSED, i.STREAM_LOST, i.NO_ANSWER):
        rows[s.CONFIGURING, given] = Row(s.CLOSED, "end")
    for given in (i.SERVER_RELEASED, i.SERVER_STOPPING, i.CLOSE):
        rows[s.CONFIGURING, given] = Row(s.CLOSED, "end")
    for state in (s.RESUMING, s.RECONFIGURING):
        rows[state, i.REFUSED] = Row(s.CLOSED, "end")
        rows[state, i.REFUSED_FOR_NOW] = Row(s.PERSISTENT, "drop_stream")
        rows[state, i.STREAM_LOST] = Row(s.PERSISTENT, "reconnect")
        rows[state, i.NO_ANSWER] = Row(s.PERSISTENT, "drop_stream")
        rows[state, i.SERVER_RELEASED] = Row(s.CLOSED, "end")
        rows[state, i.SERVER_STOPPING] = Row(s.PERSISTENT, "drop_stream")
        rows[state, i.CLOSE] = Row(s.CLOSED, "end")
        rows[state, i.NETWORK_CHANGED] = Row(s.PERSISTENT, "redial")
    for given in (i.RELEASE_ANSWERED, i.STREAM_LOST, i.NO_ANSWER, i.SERVER_RELEASED, i.SERVER_STOPPING):
        rows[s.RELEASING, given] = Row(s.CLOSED, "end")
    return rows


CLIENT: Final = complete(Client, ClientInput, _client_rows())


class ClientDdt(enum.Enum):
    """The DDT as its client sees it."""

    ABSENT = "absent"
    REQUESTED = "requested"
    OPENING = "opening"
    CONFIGURING = "configuring"
    PROVING = "proving"
    UP = "up"
    SILENT = "silent"
    LINGERING = "lingering"
    RELEASING = "releasing"
    WAITING = "waiting"
    UNAVAILABLE = "unavailable"


class ClientDdtInput(enum.Enum):
    WANTED = "wanted"
    UNWANTED = "no flow left"
    RESERVED = "tunnel reserved"
    SERVICE_UNAVAILABLE = "service unavailable"
    REFUSED = "request refused"
    DATAGRAM_READY = "datagram ready"
    GRANTED = "configuration granted"
    DENIED = "configuration denied"
    TIMER = "timer"
    NO_ANSWER = "attempts used up"
    LOST = "path lost"
    SILENT = "path silent"
    ALIVE = "path alive"
    PAIR_MISSING = "server misses the pair"
    SERVER_RELEASED = "release request"
    RELEASED = "release answered"
    STREAM_LOST = "stream lost"
    MOVED = "another network"
    RESET = "new tunnel, or the end"


def _client_ddt_rows() -> dict[tuple[ClientDdt, ClientDdtInput], Row]:
    s, i = ClientDdt, ClientDdtInput
    rows = {
        (s.ABSENT, i.WANTED): Row(s.REQUESTED, "request"),
        (s.REQUESTED, i.RESERVED): Row(s.OPENING, "open"),
        (s.REQUESTED, i.UNWANTED): Row(s.ABSENT),
        (s.REQUESTED, i.SERVICE_UNAVAILABLE): Row(s.UNAVAILABLE, "drop"),
        (s.REQUESTED, i.REFUSED): Row(s.WAITING, "fail"),
        (s.REQUESTED, i.STREAM_LOST): Row(s.ABSENT),
        (s.OPENING, i.DATAGRAM_READY): Row(s.CONFIGURING, "configure"),
        (s.OPENING, i.STREAM_LOST): Row(s.ABSENT, "drop"),
        (s.CONFIGURING, i.GRANTED): Row(s.PROVING, "bring_up"),
        (s.CONFIGURING, i.DENIED): Row(s.WAITING, "fail"),
        (s.CONFIGURING, i.TIMER): Row(s.CONFIGURING, "retransmit"),
        (s.CONFIGURING, i.NO_ANSWER): Row(s.WAITING, "fail"),
        (s.UP, i.UNWANTED): Row(s.LINGERING, "linger"),
        (s.UP, i.SILENT): Row(s.SILENT, "hold"),
        (s.PROVING, i.SILENT): Row(s.SILENT, "hold"),
        (s.PROVING, i.TIMER): Row(s.UP, "trust"),
        (s.PROVING, i.UNWANTED): Row(s.LINGERING, "linger"),
        (s.PROVING, i.PAIR_MISSING): Row(s.WAITING, "fail"),
        (s.SILENT, i.ALIVE): Row(s.PROVING, "unhold"),
        (s.SILENT, i.TIMER): Row(s.WAITING, "fail"),
        (s.SILENT, i.PAIR_MISSING): Row(s.WAITING, "fail"),
        (s.OPENING, i.TIMER): Row(s.WAITING, "fail"),
        (s.UP, i.PAIR_MISSING): Row(s.WAITING, "fail"),
        (s.LINGERING, i.WANTED): Row(s.PROVING, "linger_no_more"),
        (s.LINGERING, i.TIMER): Row(s.RELEASING, "release"),
        (s.LINGERING, i.SILENT): Row(s.ABSENT, "drop"),
        (s.LINGERING, i.PAIR_MISSING): Row(s.ABSENT, "drop"),
        (s.LINGERING, i.LOST): Row(s.ABSENT, "drop"),
        (s.LINGERING, i.SERVER_RELEASED): Row(s.ABSENT, "drop"),
        (s.RELEASING, i.RELEASED): Row(s.ABSENT, "released"),
        (s.RELEASING, i.LOST): Row(s.ABSENT, "released"),
        (s.RELEASING, i.SERVER_RELEASED): Row(s.ABSENT, "released"),
        (s.RELEASING, i.STREAM_LOST): Row(s.ABSENT, "drop"),
        (s.WAITING, i.TIMER): Row(s.ABSENT, "retry"),
    }
    for state in (s.OPENING, s.CONFIGURING, s.PROVING, s.UP, s.SILENT):
        rows[state, i.LOST] = Row(s.WAITING, "fail")
        rows[state, i.SERVER_RELEASED] = Row(s.WAITING, "fail")
        rows[state, i.RESERVED] = Row(s.OPENING, "open_another")
    for state in (s.PROVING, s.UP, s.SILENT, s.LINGERING):
        rows[state, i.MOVED] = Row(s.RELEASING, "release")
    rows[s.CONFIGURING, i.MOVED] = Row(s.ABSENT, "drop")
    rows[s.WAITING, i.MOVED] = Row(s.ABSENT, "retry")
    for state in s:
        rows[state, i.RESET] = Row(s.ABSENT, "reset")
    return rows


CLIENT_DDT: Final = complete(ClientDdt, ClientDdtInput, _client_ddt_rows())


class Server(enum.Enum):
    """Life of a session on the server."""

    WAITING = "waiting"
    AUTHENTICATING = "authenticating"
    LEASING = "leasing"
    ACTIVE = "active"
    PERSISTENT = "persistent"
    RELEASING = "releasing"
    CLOSED = "closed"


class ServerInput(enum.Enum):
    CONFIGURE = "configuration request"
    RESUME_ASKED = "configuration request with a proof nobody accepts"
    AUTHENTICATED = "authenticated"
    AUTHENTICATION_FAILED = "authentication failed"
    LEASED = "leased"
    LEASE_REFUSED = "lease refused"
    RESUME = "verified resume on a new stream"
    STREAM_LOST = "stream lost"
    STREAM_IDLE = "stream idle"
    TIMER = "timer"
    CLIENT_RELEASED = "release request"
    TERMINATE = "server terminates"
    RELEASE_ANSWERED = "release answered"


def _server_rows() -> dict[tuple[Server, ServerInput], Row]:
    s, i = Server, ServerInput
    rows = {
        (s.WAITING, i.CONFIGURE): Row(s.AUTHENTICATING, "authenticate"),
        (s.WAITING, i.RESUME_ASKED): Row(s.WAITING, "refuse_resume"),
        (s.AUTHENTICATING, i.AUTHENTICATED): Row(s.LEASING, "allocate"),
        (s.AUTHENTICATING, i.AUTHENTICATION_FAILED): Row(s.CLOSED, "refuse"),
        (s.LEASING, i.LEASED): Row(s.ACTIVE, "configure"),
        (s.LEASING, i.LEASE_REFUSED): Row(s.CLOSED, "refuse"),
        (s.ACTIVE, i.STREAM_LOST): Row(s.PERSISTENT, "lose_stream"),
        (s.ACTIVE, i.STREAM_IDLE): Row(s.PERSISTENT, "drop_stream"),
        (s.ACTIVE, i.RESUME): Row(s.ACTIVE, "take_over"),
        (s.ACTIVE, i.CLIENT_RELEASED): Row(s.CLOSED, "end"),
        (s.ACTIVE, i.TERMINATE): Row(s.RELEASING, "send_release"),
        (s.PERSISTENT, i.RESUME): Row(s.ACTIVE, "take_over"),
        (s.PERSISTENT, i.TIMER): Row(s.CLOSED, "end"),
        (s.PERSISTENT, i.TERMINATE): Row(s.CLOSED, "end"),
        (s.CLOSED, i.LEASED): Row(s.CLOSED, "return_lease"),
    }
    for state in (s.WAITING, s.AUTHENTICATING, s.LEASING):
        for given in (i.STREAM_LOST, i.STREAM_IDLE, i.TIMER, i.CLIENT_RELEASED):
            rows[state, given] = Row(s.CLOSED, "end")
        rows[state, i.TERMINATE] = Row(s.CLOSED, "refuse")
    for given in (i.RELEASE_ANSWERED, i.TIMER, i.STREAM_LOST, i.STREAM_IDLE, i.CLIENT_RELEASED):
        rows[s.RELEASING, given] = Row(s.CLOSED, "end")
    return rows


SERVER: Final = complete(Server, ServerInput, _server_rows())


class ServerDdt(enum.Enum):
    """The DDT as the server sees it."""

    ABSENT = "absent"
    RESERVED = "reserved"
    READY = "ready"
    UP = "up"
    SILENT = "silent"


class ServerDdtInput(enum.Enum):
    ENABLE = "service enabled"
    DATAGRAM_READY = "datagram ready"
    CONFIGURE = "configuration request"
    LOST = "path lost"
    SILENT = "path silent"
    ALIVE = "path alive"
    RELEASED = "release request"
    TIMER = "timer"
    RESUMED = "stream resumed"
    RESET = "the end"


def _server_ddt_rows() -> dict[tuple[ServerDdt, ServerDdtInput], Row]:
    s, i = ServerDdt, ServerDdtInput
    rows = {
        (s.ABSENT, i.ENABLE): Row(s.RESERVED, "reserve"),
        (s.RESERVED, i.DATAGRAM_READY): Row(s.READY, "await_configuration"),
        (s.RESERVED, i.RESUMED): Row(s.ABSENT, "unreserve"),
        (s.READY, i.CONFIGURE): Row(s.UP, "bring_up"),
        (s.UP, i.CONFIGURE): Row(s.UP, "confirm"),
        (s.SILENT, i.CONFIGURE): Row(s.SILENT, "confirm"),
        (s.UP, i.SILENT): Row(s.SILENT, "hold"),
        (s.SILENT, i.ALIVE): Row(s.UP, "unhold"),
    }
    for given in (i.LOST, i.RELEASED, i.TIMER, i.RESET):
        rows[s.RESERVED, given] = Row(s.ABSENT, "unreserve")
    for state in (s.READY, s.UP, s.SILENT):
        for given in (i.LOST, i.RELEASED, i.RESET):
            rows[state, given] = Row(s.ABSENT, "take_down")
    for state in (s.READY, s.SILENT):
        rows[state, i.TIMER] = Row(s.ABSENT, "take_down")
    return rows


SERVER_DDT: Final = complete(ServerDdt, ServerDdtInput, _server_ddt_rows())


class ClientStream(enum.Enum):
    """A stream beside the main one, as its client sees it."""

    ABSENT = "absent"
    REQUESTED = "requested"
    OPENING = "opening"
    CONFIGURING = "configuring"
    UP = "up"
    RELEASING = "releasing"
    WAITING = "waiting"
    UNAVAILABLE = "unavailable"


class ClientStreamInput(enum.Enum):
    WANTED = "wanted"
    UNWANTED = "no longer wanted"
    RESERVED = "stream reserved"
    SERVICE_UNAVAILABLE = "service unavailable"
    REFUSED = "request refused"
    READY = "stream ready"
    GRANTED = "configuration granted"
    DENIED = "configuration denied"
    TIMER = "timer"
    LOST = "stream lost"
    SERVER_RELEASED = "release request"
    RELEASED = "release answered"
    MAIN_LOST = "main stream lost"
    RESET = "new tunnel, or the end"


def _client_stream_rows() -> dict[tuple[ClientStream, ClientStreamInput], Row]:
    s, i = ClientStream, ClientStreamInput
    rows = {
        (s.ABSENT, i.WANTED): Row(s.REQUESTED, "request"),
        (s.REQUESTED, i.RESERVED): Row(s.OPENING, "open"),
        (s.REQUESTED, i.SERVICE_UNAVAILABLE): Row(s.UNAVAILABLE),
        (s.REQUESTED, i.REFUSED): Row(s.WAITING, "back_off"),
        (s.REQUESTED, i.MAIN_LOST): Row(s.ABSENT),
        (s.OPENING, i.READY): Row(s.CONFIGURING, "configure"),
        (s.CONFIGURING, i.GRANTED): Row(s.UP, "bring_up"),
        (s.CONFIGURING, i.DENIED): Row(s.WAITING, "fail"),
        (s.UP, i.UNWANTED): Row(s.RELEASING, "release"),
        (s.RELEASING, i.RELEASED): Row(s.ABSENT, "drop"),
        (s.RELEASING, i.TIMER): Row(s.ABSENT, "drop"),
        (s.RELEASING, i.LOST): Row(s.ABSENT, "drop"),
        (s.RELEASING, i.SERVER_RELEASED): Row(s.ABSENT, "drop"),
        (s.WAITING, i.TIMER): Row(s.ABSENT, "retry"),
        (s.WAITING, i.UNWANTED): Row(s.ABSENT, "retry"),
        (s.UNAVAILABLE, i.UNWANTED): Row(s.ABSENT),
    }
    # One that may have media of the server's on it already is given back in good order, when it is up.
    rows[s.OPENING, i.UNWANTED] = Row(s.ABSENT, "give_up")
    for state in (s.OPENING, s.CONFIGURING):
        rows[state, i.TIMER] = Row(s.WAITING, "fail")
    for state in (s.OPENING, s.CONFIGURING, s.UP):
        rows[state, i.LOST] = Row(s.WAITING, "fail")
        rows[state, i.SERVER_RELEASED] = Row(s.WAITING, "fail")
    for state in s:
        rows[state, i.RESET] = Row(s.ABSENT, "drop")
    return rows


CLIENT_STREAM: Final = complete(ClientStream, ClientStreamInput, _client_stream_rows())


class ServerStream(enum.Enum):
    """A stream beside the main one, as the server sees it."""

    ABSENT = "absent"
    RESERVED = "reserved"
    UP = "up"
    LEAVING = "leaving"


class ServerStreamInput(enum.Enum):
    ENABLE = "service enabled"
    JOIN = "verified join on a new stream"
    LOST = "stream lost or silent"
    RELEASED = "release request"
    TIMER = "timer"
    RESET = "the end"


def _server_stream_rows() -> dict[tuple[ServerStream, ServerStreamInput], Row]:
    s, i = ServerStream, ServerStreamInput
    rows = {
        (s.ABSENT, i.ENABLE): Row(s.RESERVED, "reserve"),
        (s.RESERVED, i.JOIN): Row(s.UP, "bring_up"),
        (s.RESERVED, i.RELEASED): Row(s.ABSENT, "unreserve"),
        (s.RESERVED, i.TIMER): Row(s.ABSENT, "unreserve"),
        (s.RESERVED, i.RESET): Row(s.ABSENT, "unreserve"),
        (s.UP, i.RELEASED): Row(s.LEAVING, "let_go"),
        (s.UP, i.LOST): Row(s.ABSENT, "take_down"),
        (s.UP, i.RESET): Row(s.ABSENT, "take_down"),
    }
    for given in (i.LOST, i.TIMER, i.RESET):
        rows[s.LEAVING, given] = Row(s.ABSENT, "close")
    return rows


SERVER_STREAM: Final = complete(ServerStream, ServerStreamInput, _server_stream_rows())

TABLES: Final[dict[str, Table]] = {
    "Client": CLIENT,
    "Client's DDT": CLIENT_DDT,
    "Client's further streams": CLIENT_STREAM,
    "Server": SERVER,
    "Server's DDT": SERVER_DDT,
    "Server's further streams": SERVER_STREAM,
}


def render_table(table: Table) -> str:
    """The table as Markdown: one line per pair that is not ignored."""
    lines = ["| state | input | next state | action |", "|---|---|---|---|"]
    for (state, given), row in table.items():
        if not row.ignored:
            action = row.handler.replace("_", " ")
            lines.append(f"| {state.value} | {given.value} | {row.next.value} | {action} |")
    return "\n".join(lines) + "\n"


def render_diagram(table: Table) -> str:
    """The table as a mermaid state diagram; inputs with the same effect share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, given), row in table.items():
        if not row.ignored:
            arrows.setdefault((_node(state), _node(row.next)), []).append(given.value)
    start = next(iter(table))[0]
    lines = ["stateDiagram-v2", f"    [*] --> {_node(start)}"]
    lines += [f"    {a} --> {b}: {'<br/>'.join(inputs)}" for (a, b), inputs in arrows.items()]
    return "\n".join(lines) + "\n"


def _node(state: enum.Enum) -> str:
    return str(state.value).replace(" ", "_")
