"""The client: one tunnel, its sockets, its notifications. ``opentsm.connect`` is the way in.

address     what a user writes -> a server
settings    the arguments of ``connect``, checked
proxy       HTTP CONNECT and SOCKS5, without I/O
dial        servers -> the first stream connection that comes up (RFC 8305)
connection  session + user plane + timers
binding     one bound inner UDP port; endpoint, sockets: its two faces
quality     mode AUTO: measurements -> the path
tunnel      what the application holds
"""
