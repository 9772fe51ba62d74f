//! `crowd`: many clients of a real server, in pairs that talk to each other through it.
//!
//! Each client has a stream tunnel, an inner address and (with `--path datagram`) a datagram tunnel of its own; all
//! share one engine of this crate, whose packets do not differ from those of the SDK. Orders come as lines on
//! standard input, each answered by one JSON object: `talk RATE SECONDS` (packets per second of each client; 0: as
//! many as come back, with a bounded number under way) and `end`.

use std::collections::HashMap;
use std::io::BufRead;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use _core::boundary::{Command, Event};
use _core::crypto::{ClientProfile, ClientSettings, Trust, psk_for};
use _core::egress::Class;
use _core::engine::Running;
use _core::tables::sockets::LocalSocket;
use _core::tables::{FlowKey, PathMode, Role, Session, Sink};
use _core::tunnel::Tunnel;

use crate::histogram::Histogram;
use crate::messages::{self, Answer};
use crate::{HEAD, Options, monotonic_ns, read_head, write_head};

/// Clients on their way in at any moment.
const AT_ONCE: usize = 64;
/// Without any event for this long an order has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Packets under way at most when saturating: a few batches, less than any queue on the way.
const WINDOW: u64 = 512;
/// The inner port of every client.
const PORT: u16 = 4000;
/// Datagrams that may wait in a client's socket.
const QUEUE: usize = 4096;
const UDP: u8 = 17;

struct Client {
    stream: u64,
    tsid: u64,
    datagram_tsid: u64,
    session: Option<Arc<Session>>,
    socket: Option<Arc<LocalSocket>>,
    sent: u64,
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
    received: u64,
    delays: Histogram,
}

/// Set the crowd up, then obey orders.
pub fn run(options: &Options) -> Result<String, String> {
    let count: usize = options.get("clients", 2)?;
    let size: usize = options.get("size", 172)?;
    let mut crowd = Crowd::new(options)?;
    let begin = Instant::now();
    crowd.set_up(count)?;
    println!("{{\"up\":{count},\"seconds\":{:.3}}}", begin.elapsed().as_secs_f64());
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["talk", rate, seconds] => {
                let rate = rate.parse().map_err(|_| format!("cannot read {rate:?}"))?;
                let seconds = seconds.parse().map_err(|_| format!("cannot read {seconds:?}"))?;
                println!("{}", crowd.talk(rate, Duration::from_secs_f64(seconds), size.max(HEAD)));
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
        let ca: String = options.get("ca", String::new())?;
        let pem = std::fs::read(&ca).map_err(|e| format!("--ca {ca}: {e}"))?;
        let settings = ClientSettings {
            trust: Trust::Pem(pem),
            alpn: vec![b"opentsm/1".to_vec()],
            require_alpn: true,
            tls12: false,
            ..ClientSettings::default()
        };
        Ok(Self {
            running: Running::start(1).map_err(|e| e.to_string())?,
            server: options.address("to")?,
            profile: Arc::new(ClientProfile::new(&settings).map_err(|e| e.detail)?),
            token: options.get::<String>("token", String::new())?.into_bytes(),
            datagrams: path == "datagram",
            clients: Vec::new(),
            by_tunnel: HashMap::new(),
            moving: 0,
            received: 0,
            delays: Histogram::new(),
        })
    }

    // -- set-up -------------------------------------------------------------------------------------

    fn set_up(&mut self, count: usize) -> Result<(), String> {
        let mut heard = Instant::now();
        while self.clients.len() < count || self.moving > 0 {
            while self.clients.len() < count && self.moving < AT_ONCE {
                self.begin()?;
            }
            let events = self.take();
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

    fn take(&mut self) -> Vec<Event> {
        let (events, resume) = self.running.engine.events.take(4096);
        if resume {
            self.running.engine.inboxes.iter().for_each(|inbox| inbox.wake.wake());
        }
        events
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
            socket: None,
            sent: 0,
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
            Answer::Configured { .. } | Answer::Service { .. } => {
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
        let key = FlowKey { protocol: UDP, v6: address.is_ipv6(), port: PORT, far: None };
        session.flows.set(key, mode, true);
        let bound = engine.sockets.bind(engine.new_id(0), Some(id), address, PORT, QUEUE);
        let socket = bound.map_err(|e| format!("no inner socket: {e:?}"))?;
        let (_, client) = self.client_at(index)?;
        (client.session, client.socket) = (Some(session), Some(socket));
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

    /// Every client sends to its partner; the answer says what came.
    fn talk(&mut self, rate: u64, length: Duration, size: usize) -> String {
        (self.received, self.delays) = (0, Histogram::new());
        let (mut sent, mut refused) = (0u64, 0u64);
        let begin = Instant::now();
        let total = rate * self.clients.len() as u64;
        while begin.elapsed() < length {
            let due = if total == 0 {
                sent + WINDOW.saturating_sub(sent - self.received.min(sent))
            } else {
                (begin.elapsed().as_nanos() * u128::from(total) / 1_000_000_000) as u64
            };
            while sent + refused < due {
                let index = ((sent + refused) % self.clients.len() as u64) as usize;
                if self.say(index, size) { sent += 1 } else { refused += 1 }
            }
            self.running.forwarder.flush_datagrams();
            self.listen();
            if total > 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let took = begin.elapsed().as_secs_f64();
        let quiet = Instant::now();
        while self.received < sent && quiet.elapsed() < Duration::from_millis(300) {
            self.listen();
            std::thread::sleep(Duration::from_millis(1));
        }
        format!(
            "{{\"sent\":{sent},\"refused\":{refused},\"received\":{},\"seconds\":{took:.6},\"delay_us\":{}}}",
            self.received,
            self.delays.summary()
        )
    }

    fn say(&mut self, index: usize, size: usize) -> bool {
        let partner = self.clients.get(index ^ 1).and_then(|c| c.socket.as_ref()).map(|s| s.address);
        let (Some(to), Some(client)) = (partner, self.clients.get_mut(index)) else {
            return false;
        };
        let Some(socket) = client.socket.clone() else {
            return false;
        };
        let mut payload = [0u8; crate::MAX_SIZE];
        let Some(payload) = payload.get_mut(..size) else {
            return false;
        };
        write_head(payload, index as u32, client.sent);
        client.sent += 1;
        let forwarder = &mut self.running.forwarder;
        forwarder.now_us = forwarder.engine.now_us();
        forwarder.from_local(&socket, payload, SocketAddr::new(to, PORT), 0).is_ok()
    }

    fn listen(&mut self) {
        for event in self.take() {
            if let Event::Udp { data, .. } = event
                && let Some((_, _, sent_ns)) = read_head(&data)
            {
                self.received += 1;
                self.delays.add(monotonic_ns().saturating_sub(sent_ns));
            }
        }
    }
}
