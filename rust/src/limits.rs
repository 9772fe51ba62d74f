//! Every cap of the user plane, each with its reason.

/// Largest inner packet on a stream. A SIP message over inner UDP may exceed any MTU; nine
/// kilobytes is a jumbo frame and more than any SIP stack sends.
pub const MAX_INNER_PACKET: usize = 9216;

/// Largest control message; the same number as in `opentsm.limits`.
pub const MAX_CONTROL_MESSAGE: usize = 4096;

/// TLVs in one control message; the same number as in `opentsm.limits`.
pub const MAX_TLVS: usize = 64;

/// Bytes of one outer datagram we send. PPPoE, LTE and most tunnels in between carry it unfragmented.
pub const DATAGRAM_MTU: usize = 1400;

/// Size of a receive slot: any datagram an Ethernet path can deliver, with room to see truncation.
pub const DATAGRAM_SLOT: usize = 2048;

/// Datagrams per recvmmsg/sendmmsg call; measured elsewhere: more than 64 gains nothing.
pub const BATCH: usize = 64;

/// Batches read from one socket before the others get their turn.
pub const READ_BUDGET: usize = 4;

/// Plain bytes per TLS record when frames are coalesced: a record is useless until its last byte is
/// there, so on a lossy path a longer one delays the frames at its head.
pub const STREAM_RECORD: usize = 4096;

/// Bytes of records written to a stream at once: one turn's worth at 250,000 packets/s.
pub const STREAM_WRITE: usize = 64 * 1024;

/// TCP_NOTSENT_LOWAT: unsent bytes the kernel may hold. What is in the kernel can neither be dropped for
/// age nor overtaken by signalling; 4 KiB is a third of a second of one G.711 call.
pub const STREAM_UNSENT_LOW_WATER: u32 = 4096;

/// Signalling (and other unclassified) bytes queued for one stream.
pub const SIGNALLING_QUEUE: usize = 256 * 1024;

/// Media bytes queued for one stream: 250 ms of a trunk with several hundred calls.
pub const MEDIA_QUEUE: usize = 1024 * 1024;

/// Useful age of media queued on a stream that is backed up. ITU-T G.114 gives 400 ms for the whole
/// way from mouth to ear; what has waited this long before it even leaves is of no use.
pub const MEDIA_AGE_MS: u64 = 250;

/// Queue memory kept by an idle stream; more is given back when the queue runs empty.
pub const QUEUE_KEEP: usize = 16 * 1024;

/// Streams of one session: what fan-out and load-balance may use, the main one among them. Two copies bring a
/// lossy path from 88 to 98 % in time, three to all but nothing; a fourth is for load-balance.
pub const MAX_STREAMS: usize = 4;

/// Steering rows of one session; the same number as `opentsm.limits.MAX_FLOWS_PER_SESSION`.
pub const MAX_FLOWS: usize = 2048;

/// Ranges of ports that a user may call media; each is looked at for each packet of the client's.
pub const MAX_PORT_RANGES: usize = 16;

/// Longest payload that is repeated: half of what fits a datagram, so that a frame and a copy of the one before go
/// together. A voice frame has 30 to 500 bytes; video goes without.
pub const CODED_PAYLOAD: usize = 640;

/// Compression contexts of one direction of a session: what eight bits name.
pub const MAX_CONTEXTS: usize = 256;

/// Events waiting for Python. Beyond it control messages are no longer read from their senders.
pub const EVENT_QUEUE: usize = 16 * 1024;

/// Events beyond EVENT_QUEUE that only facts about tunnels (never peer-made messages) may use, so that
/// "tunnel closed" is not lost because somebody floods.
pub const EVENT_RESERVE: usize = 256 * 1024;

/// Handshakes in progress per worker; beyond it new connections wait in the kernel or are refused.
pub const MAX_HANDSHAKES: usize = 4096;

/// Time of one turn for those who come in (accept, steps of TLS handshakes) beside the first step: a step has a
/// signature in it and takes up to 300 us, and packets of others wait behind it.
pub const WELCOME_US: u64 = 150;

/// Descriptors that tunnels leave free, for what keeps a full server manageable: admin connections, account files,
/// logs, certificates, sockets of calls.
pub const RESERVED_DESCRIPTORS: u64 = 64;

/// The same where few may be open: not more than this part of them.
pub const RESERVED_PART: u64 = 8;

/// When not even a connection to be turned away could be accepted, this long nobody tries: the listener stays
/// readable meanwhile, and a thread that tried at once again would do nothing else.
pub const ACCEPT_PAUSE_MS: u64 = 100;

/// From accept to the end of the TLS handshake, and for DTLS from the cookie to the end.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;

/// A finished DTLS handshake is kept this long to answer a client whose last flight was lost; a client's
/// own timers end before.
pub const HANDSHAKE_LINGER_MS: u64 = 15_000;

/// Time a closing stream may take to flush what is queued.
pub const CLOSE_FLUSH_MS: u64 = 1_000;

/// Reserved datagram tunnels waiting for their handshake, per engine.
pub const MAX_RESERVATIONS: usize = 65_536;

/// Inner UDP sockets bound in this process.
pub const MAX_LOCAL_SOCKETS: usize = 65_536;

/// First port handed out when port 0 is asked for (RFC 6335 dynamic ports).
pub const EPHEMERAL_PORT: u16 = 49_152;

/// Userspace core sockets, per worker: one per inner client port that talks to the core.
pub const MAX_CORE_SOCKETS: usize = 4_096;

/// A userspace core socket without packets is closed after this (RFC 4787 REQ-5 asks for at least 2 min).
pub const CORE_IDLE_MS: u64 = 300_000;

/// Media relays of the embedded SBC: 20,000 calls with audio and its RTCP, and as many again.
pub const MAX_RELAYS: usize = 80_000;

/// Destination NAT bindings kept for the way back.
pub const MAX_NAT_BINDINGS: usize = 65_536;

/// Packets a capture may have waiting for the disk.
pub const CAPTURE_QUEUE: usize = 4_096;

/// Kernel buffer asked for on UDP sockets: 10 ms of a full core at 200 bytes, times ten.
pub const UDP_BUFFER: usize = 4 * 1024 * 1024;

/// Unanswered probes remembered per tunnel: a train of one every 20 ms over a path of 600 ms.
pub const MAX_PROBES: usize = 32;

/// Bytes of the largest probe: a packet of 20 ms of G.711, the largest that voice makes.
pub const MAX_PROBE: usize = 256;

/// Variation of a path that one probe may claim; more is another clock, or a lie.
pub const MAX_JITTER_US: u64 = 1_000_000;

/// Bytes of a client's inner TCP connection in the stack, each way. Below 65,536 the window needs no scaling
/// (RFC 7323), so a segment can never lie between the window meant and the window said. At 100 ms it carries
/// 5 Mbit/s.
pub const TCP_BUFFER: usize = 65_535;

/// The same for a server's own connections, of which there are thousands, with a SIP message in them now and then.
pub const TCP_SERVER_BUFFER: usize = 16 * 1024;

/// Bytes of one connection that Python has handed over and the stack has not taken yet.
pub const TCP_SEND_QUEUE: usize = 64 * 1024;

/// Bytes of one connection that Python has been told of and has not given back: when it is slow, the window
/// closes behind this.
pub const TCP_CREDIT: usize = 64 * 1024;

/// Inner TCP connections of one worker: a phone's each. With all buffers of a server's full, 512 MiB.
pub const MAX_TCP_CONNECTIONS: usize = 16_384;

/// Accepted connections of one peer address: a phone has one, a gateway's connection pool a few dozen.
pub const TCP_CONNECTIONS_PER_PEER: usize = 64;

/// Of these, not yet established: who has so many open doors does not mean to walk through them.
pub const TCP_HALF_OPEN_PER_PEER: usize = 8;

/// Largest backlog of one listener (half open, or established and Python not told).
pub const MAX_TCP_BACKLOG: usize = 1_024;

/// Inner TCP listeners in this process.
pub const MAX_TCP_LISTENERS: usize = 4_096;

/// Bytes of inner TCP packets on their way to the worker whose they are; more is dropped like by any full queue.
pub const TCP_INGRESS_QUEUE: usize = 1024 * 1024;

/// Inner TCP packets a worker takes before its other sockets get their turn.
pub const TCP_INGRESS_BUDGET: usize = 256;

/// From a SYN, ours or a peer's, to the end of the handshake. Five SYNs 1, 2, 4, 8 s apart fit, and a tunnel
/// that is being remade.
pub const TCP_OPENING_MS: u64 = 30_000;

/// An idle connection is probed so often, as RFC 9293 section 3.8.4 has it but sooner: a slot of a peer that is
/// gone without a word is worth more than its packets.
pub const TCP_KEEPALIVE_MS: u64 = 60_000;

/// A connection whose peer has said nothing for so long, probes or not, is over. More than the 330 s for which a
/// lost tunnel keeps its address, because its connections are to outlive that.
pub const TCP_SILENCE_MS: u64 = 360_000;

/// A connection without data either way is over after this, though its peer answers probes (RFC 5382 REQ-5).
pub const TCP_IDLE_MS: u64 = 7_440_000;

/// From the program's close to the end, whatever the peer does: what is queued may still be delivered.
pub const TCP_LINGER_MS: u64 = 60_000;

/// For so long after a tunnel was made anew, connections over it do not wait for their back-off: our end of the
/// tunnel may be ready before the other, and what is sent in between is lost.
pub const TCP_EAGER_MS: u64 = 3_000;

/// Between two such tries: a round trip of most lines.
pub const TCP_EAGER_STEP_MS: u64 = 200;

/// When Python's event queue is full, a connection looks again after this.
pub const TCP_RETRY_MS: u64 = 20;

/// UDP sockets of one worker that are asked for what the kernel dropped at them: more than listeners. A process that dials
/// thousands of tunnels, to load a server, is not to stand still for it.
pub const DROP_SOCKETS: usize = 64;
