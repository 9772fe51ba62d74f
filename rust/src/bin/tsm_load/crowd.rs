//! `crowd`: many clients of a real server, that talk to each other through it (see `talk.rs`).
//!
//! Each client has a stream tunnel, an inner address and (with `--path datagram`) a datagram tunnel of its own; all
//! share one engine of this crate, whose packets do not differ from those of the SDK. Who talks to whom is
//! `--shape`: in `pairs` each client has `--calls` calls with its partner; in a `hub` the first client, a trunk, has
//! one with each of the others; `far`: each has `--calls` calls with a plain UDP socket at `--far`, on the server's
//! side of the network. Orders come as lines on standard input, each answered by one JSON object: `talk RATE SECONDS`
//! (packets per second of each end of a call; 0: as many as come back, with a bounded number under way) and `end`.

use std::collections::HashMap;
use std::io::BufRead;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use _core::boundary::{Command, Event};
use _core::crypto::{ClientProfile, psk_for};
use _core::egress::Class;
use _core::engine::Running;
use _core::tables::sockets::LocalSocket;
use _core::tables::{FlowKey, PathMode, Role, Session, Sink};
use _core::tunnel::Tunnel;

use crate::churn::client_profile;
use crate::messages::{self, Answer};
use crate::talk::{Far, Talk, take};
use crate::{HEAD, Options};

/// Clients on their way in at any moment.
const AT_ONCE: usize = 64;
/// Without any event for this long an order has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// The inner port of every client's first call.
const PORT: u16 = 4000;
/// Datagrams that may wait in a client's socket.
const QUEUE: usize = 4096;
const UDP: u8 = 17;

struct Client {
    stream: u64,
    tsid: u64,
    datagram_tsid: u64,
    session: Option<Arc<Session>>,
    sockets: Vec<Arc<LocalSocket>>,
}

/// Who talks to whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Pairs,
    Hub,
    Far,
}

struct Crowd {
    running: Running,
    server: SocketAddr,
    profile: Arc<ClientProfile>,
    token: Vec<u8>,
    datagrams: bool,
    clients: Vec<Client>,
    by_tunnel: HashMap<u64, usize>,
    moving: usize,
    shape: Shape,
    calls: usize,
    wanted: usize,
}

/// Set the crowd up, then obey orders.
pub fn run(options: &Options) -> Result<String, String> {
    let size: usize = options.get("size", 172)?;
    let tick = Duration::from_micros(options.get("tick-us", 200)?);
    let mut crowd = Crowd::new(options)?;
    let begin = Instant::now();
    crowd.set_up()?;
    let far = (crowd.shape == Shape::Far).then(|| Far::open(options.address("far")?)).transpose()?;
    let mut talk = Talk::new(far, size.max(HEAD), tick);
    crowd.arrange(&mut talk);
    println!("{{\"up\":{},\"seconds\":{:.3}}}", crowd.clients.len(), begin.elapsed().as_secs_f64());
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["talk", rate, seconds] => {
                let rate = rate.parse().map_err(|_| format!("cannot read {rate:?}"))?;
                let seconds = seconds.parse().map_err(|_| format!("cannot read {seconds:?}"))?;
                println!("{}", talk.run(&mut crowd.running, rate, Duration::from_secs_f64(seconds)));
            }
            ["end"] => break,
            _ => return Err(format!("not an order: {line}")),
        }
    }
    crowd.running.stop(0);
    Ok("{\"ended\":true}".into())
}

impl Crowd {
    fn new(options: &Options) -> Result<Self, String> {
        let path: String = options.get("path", "datagram".into())?;
        let shape = match options.get("shape", "pairs".to_owned())?.as_str() {
            "pairs" => Shape::Pairs,
            "hub" => Shape::Hub,
            "far" => Shape::Far,
            other => return Err(format!("--shape: {other} is none of pairs, hub, far")),
        };
        Ok(Self {
            running: Running::start(1).map_err(|e| e.to_string())?,
            server: options.address("to")?,
            profile: client_profile(options)?,
            token: options.get::<String>("token", String::new())?.into_bytes(),
            datagrams: path == "datagram",
            clients: Vec::new(),
            by_tunnel: HashMap::new(),
            moving: 0,
            shape,
            calls: options.get("calls", 1)?,
            wanted: options.get("clients", 2)?,
        })
    }

    // -- set-up -------------------------------------------------------------------------------------

    fn set_up(&mut self) -> Result<(), String> {
        let count = self.wanted;
        let mut heard = Instant::now();
        while self.clients.len() < count || self.moving > 0 {
            while self.clients.len() < count && self.moving < AT_ONCE {
                self.begin()?;
            }
            let events = take(&self.running);
            if events.is_empty() {
                if heard.elapsed() > PATIENCE {
                    return Err(format!("{} clients got no answer", self.moving));
                }
                std::thread::sleep(Duration::from_micros(500));
                continue;
            }
            heard = Instant::now();
            for event in events {
                self.on_event(event)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), String> {
        let socket = TcpStream::connect(self.server).map_err(|e| e.to_string())?;
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        let tunnel = self.running.engine.new_id(0);
        let tls = Some((Arc::clone(&self.profile), self.server.ip().to_string()));
        self.order(Command::AttachStream { tunnel, fd: OwnedFd::from(socket), tls });
        self.by_tunnel.insert(tunnel, self.clients.len());
        self.clients.push(Client {
            stream: tunnel,
            tsid: u64::MAX,
            datagram_tsid: 0,
            session: None,
            sockets: Vec::new(),
        });
        self.moving += 1;
        Ok(())
    }

    fn order(&self, command: Command) {
        if let Some(inbox) = self.running.engine.inbox(0) {
            inbox.send(command);
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::StreamReady { tunnel, .. } => {
                let request = messages::configuration(u64::MAX, &self.token);
                self.send(tunnel, &request)
            }
            Event::DatagramReady { tunnel, .. } => self.on_datagram(tunnel),
            Event::Control { tunnel, data } => self.on_answer(tunnel, &data),
            Event::Closed { reason, detail, .. } => Err(format!("a tunnel was closed: {reason} {detail}")),
            _ => Ok(()),
        }
    }

    fn send(&mut self, tunnel: u64, message: &[u8]) -> Result<(), String> {
        let tunnel = self.tunnel(tunnel)?;
        let forwarder = &mut self.running.forwarder;
        forwarder.now_us = forwarder.engine.now_us();
        let sent = if tunnel.is_datagram() {
            forwarder.send_frame(&tunnel, message)
        } else {
            forwarder.queue_frame(&tunnel, Class::Signalling, message)
        };
        forwarder.flush_datagrams();
        sent.map_err(|drop| format!("a control message was dropped: {}", drop.name()))
    }

    fn tunnel(&self, id: u64) -> Result<Arc<Tunnel>, String> {
        self.running.engine.tunnels.get(&id).ok_or_else(|| format!("tunnel {id} is gone"))
    }

    fn client(&mut self, tunnel: u64) -> Result<(usize, &mut Client), String> {
        let index = *self.by_tunnel.get(&tunnel).ok_or("a message of a stranger")?;
        Ok((index, self.clients.get_mut(index).ok_or("no such client")?))
    }

    fn on_answer(&mut self, tunnel: u64, data: &[u8]) -> Result<(), String> {
        let datagrams = self.datagrams;
        let (index, client) = self.client(tunnel)?;
        match messages::read(data)? {
            Answer::Configured { tsid, address } if tunnel == client.stream => {
                client.tsid = tsid;
                self.on_lease(index, address)
            }
            Answer::Service { reserved: Some(tsid) } if datagrams => {
                client.datagram_tsid = tsid;
                self.dial(index)
            }
            Answer::Configured { .. } | Answer::Service { .. } | Answer::Released => {
                self.moving -= 1;
                Ok(())
            }
        }
    }

    /// The client has its address: a session, a socket, and the way its media is to take.
    fn on_lease(&mut self, index: usize, address: IpAddr) -> Result<(), String> {
        let engine = Arc::clone(&self.running.engine);
        let id = index as u64 + 1;
        let session = Arc::new(Session::new(id, Role::Client, vec![address], Sink::Local));
        engine.sessions.insert(id, Arc::clone(&session));
        let mode = if self.datagrams { PathMode::Datagram } else { PathMode::Stream };
        let mut sockets = Vec::new();
        for port in (PORT..).take(self.calls_of(index)) {
            let key = FlowKey { protocol: UDP, v6: address.is_ipv6(), port, far: None };
            session.flows.set(key, mode, true);
            let bound = engine.sockets.bind(engine.new_id(0), Some(id), address, port, QUEUE);
            sockets.push(bound.map_err(|e| format!("no inner socket: {e:?}"))?);
        }
        let (_, client) = self.client_at(index)?;
        (client.session, client.sockets) = (Some(session), sockets);
        let (stream, tsid) = (client.stream, client.tsid);
        self.attach(index, stream, tsid)?;
        self.send(stream, &messages::media(tsid, PORT, self.datagrams))
    }

    fn client_at(&mut self, index: usize) -> Result<(usize, &mut Client), String> {
        Ok((index, self.clients.get_mut(index).ok_or("no such client")?))
    }

    fn attach(&mut self, index: usize, tunnel: u64, tsid: u64) -> Result<(), String> {
        let tunnel = self.tunnel(tunnel)?;
        let (_, client) = self.client_at(index)?;
        let session = client.session.as_ref().ok_or("a client without a session")?;
        tunnel.set_tsid(tsid);
        tunnel.set_session(Some(Arc::clone(session)));
        session.attach(&tunnel);
        Ok(())
    }

    fn dial(&mut self, index: usize) -> Result<(), String> {
        let any = if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
        socket.connect(self.server).map_err(|e| e.to_string())?;
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        let (_, client) = self.client_at(index)?;
        let (stream, tsid) = (client.stream, client.datagram_tsid);
        let stream = self.tunnel(stream)?;
        let root = stream.stream().and_then(|link| link.ddt_root.get()).ok_or("no key for the DDT")?;
        let psk = Some(psk_for(root, tsid));
        let tunnel = self.running.engine.new_id(0);
        let session = index as u64 + 1;
        let fd = OwnedFd::from(socket);
        self.by_tunnel.insert(tunnel, index);
        self.order(Command::AttachDatagram { tunnel, fd, psk, tsid, session, rtt_hint_ms: 500 });
        Ok(())
    }

    fn on_datagram(&mut self, tunnel: u64) -> Result<(), String> {
        let (index, client) = self.client(tunnel)?;
        let tsid = client.datagram_tsid;
        self.attach(index, tunnel, tsid)?;
        self.send(tunnel, &messages::configuration(tsid, b""))
    }

    // -- talking ------------------------------------------------------------------------------------

    fn calls_of(&self, index: usize) -> usize {
        match (self.shape, index) {
            (Shape::Hub, 0) => self.wanted.saturating_sub(1),
            (Shape::Hub, _) => 1,
            (Shape::Pairs | Shape::Far, _) => self.calls,
        }
    }

    /// Neighbours in the order of talkers are of different clients, as far as there are several.
    fn arrange(&self, talk: &mut Talk) {
        if self.shape == Shape::Hub {
            let Some((hub, others)) = self.clients.split_first() else { return };
            for (own, other) in hub.sockets.iter().zip(others.iter().flat_map(|c| &c.sockets)) {
                talk.add(own, other);
                talk.add(other, own);
            }
            return;
        }
        for call in 0..self.calls {
            for (index, client) in self.clients.iter().enumerate() {
                let partner = self.clients.get(index ^ 1).and_then(|c| c.sockets.get(call));
                match (self.shape, client.sockets.get(call), partner) {
                    (Shape::Far, Some(own), _) => talk.add_far(own),
                    (_, Some(own), Some(partner)) => talk.add(own, partner),
                    _ => {}
                }
            }
        }
    }
}
