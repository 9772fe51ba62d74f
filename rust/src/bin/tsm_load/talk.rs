//! The talking of a crowd: who says what to whom. Packets of all calls are spread evenly over time, as those of
//! many people are.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use _core::boundary::Event;
use _core::engine::Running;
use _core::sys::{RecvBatch, SendBatch, merge_datagrams, set_option};
use _core::tables::sockets::LocalSocket;

use crate::histogram::Histogram;
use crate::{BUFFER, MAX_SIZE, monotonic_ns, read_head, write_head};

/// Packets under way at most when saturating: a few batches, less than any queue on the way.
const WINDOW: u64 = 512;
/// DSCP EF: the server takes what bears it for media.
const EXPEDITED: u8 = 46 << 2;
/// How long the last packets of an order are waited for.
const TAIL: Duration = Duration::from_millis(300);

/// One end of a call.
pub struct Talker {
    mouth: Mouth,
    sent: u64,
}

enum Mouth {
    /// A client's inner socket, and whom it speaks to.
    Client(Arc<LocalSocket>, SocketAddr),
    /// The far socket answers the call of this number.
    Far(u32),
}

/// A gateway on the server's side of the network: one plain UDP socket that all calls lead to. It learns from a
/// call's first packet where its answers go.
pub struct Far {
    socket: UdpSocket,
    address: SocketAddr,
    parties: Vec<Option<SocketAddr>>,
    incoming: RecvBatch,
    outgoing: SendBatch,
}

impl Far {
    pub fn open(address: SocketAddr) -> Result<Self, String> {
        let socket = UdpSocket::bind(address).map_err(|e| format!("--far {address}: {e}"))?;
        let fd = socket.as_raw_fd();
        merge_datagrams(fd);
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
        Ok(Self {
            socket,
            address,
            parties: Vec::new(),
            incoming: RecvBatch::default(),
            outgoing: SendBatch::default(),
        })
    }

    fn say(&mut self, call: u32, payload: &[u8]) -> bool {
        let Some(to) = self.parties.get(call as usize).copied().flatten() else {
            return false;
        };
        if self.outgoing.is_full() {
            self.outgoing.flush();
        }
        self.outgoing.push(self.socket.as_raw_fd(), Some(&to), |slot| {
            slot.get_mut(..payload.len())?.copy_from_slice(payload);
            Some(payload.len())
        })
    }

    fn listen(&mut self, heard: &mut impl FnMut(&[u8]) -> Option<u32>) {
        while let Ok((count, more)) = self.incoming.receive(self.socket.as_raw_fd()) {
            for index in 0..count {
                let Some((datagrams, from)) = self.incoming.get(index) else { continue };
                for datagram in datagrams {
                    let party = heard(datagram).and_then(|call| self.parties.get_mut(call as usize));
                    if let Some(party) = party {
                        *party = Some(from);
                    }
                }
            }
            if !more {
                return;
            }
        }
    }
}

/// All calls of a crowd.
pub struct Talk {
    talkers: Vec<Talker>,
    far: Option<Far>,
    size: usize,
    /// How often packets are handed to the kernel: what a client's own pause between two turns gathers.
    tick: Duration,
    received: u64,
    delays: Histogram,
}

impl Talk {
    pub fn new(far: Option<Far>, size: usize, tick: Duration) -> Self {
        Self { talkers: Vec::new(), far, size, tick, received: 0, delays: Histogram::new() }
    }

    /// One end of a call between clients.
    pub fn add(&mut self, socket: &Arc<LocalSocket>, to: &LocalSocket) {
        let to = SocketAddr::new(to.address, to.port);
        self.talkers.push(Talker { mouth: Mouth::Client(Arc::clone(socket), to), sent: 0 });
    }

    /// Both ends of a call between a client and the far socket.
    pub fn add_far(&mut self, socket: &Arc<LocalSocket>) {
        let Some(far) = &mut self.far else { return };
        let call = self.talkers.len() as u32;
        self.talkers.push(Talker { mouth: Mouth::Client(Arc::clone(socket), far.address), sent: 0 });
        self.talkers.push(Talker { mouth: Mouth::Far(call), sent: 0 });
        far.parties.resize(self.talkers.len(), None);
    }

    /// Every talker speaks at `rate` packets per second (0: together as many as come back); says what came.
    pub fn run(&mut self, running: &mut Running, rate: f64, length: Duration) -> String {
        (self.received, self.delays) = (0, Histogram::new());
        let (mut sent, mut refused) = (0u64, 0u64);
        let begin = Instant::now();
        let total = rate * self.talkers.len() as f64;
        while begin.elapsed() < length {
            let due = if total == 0.0 {
                sent + WINDOW.saturating_sub(sent - self.received.min(sent))
            } else {
                (begin.elapsed().as_secs_f64() * total) as u64
            };
            while sent + refused < due {
                let index = ((sent + refused) % self.talkers.len() as u64) as usize;
                if self.say(running, index) { sent += 1 } else { refused += 1 }
            }
            running.forwarder.flush_datagrams();
            self.listen(running);
            if total > 0.0 {
                std::thread::sleep(self.tick);
            }
        }
        let took = begin.elapsed().as_secs_f64();
        let quiet = Instant::now();
        while self.received < sent && quiet.elapsed() < TAIL {
            self.listen(running);
            std::thread::sleep(Duration::from_millis(1));
        }
        format!(
            "{{\"sent\":{sent},\"refused\":{refused},\"received\":{},\"seconds\":{took:.6},\"delay_us\":{}}}",
            self.received,
            self.delays.summary()
        )
    }

    fn say(&mut self, running: &mut Running, index: usize) -> bool {
        let mut payload = [0u8; MAX_SIZE];
        let (Some(payload), Some(talker)) = (payload.get_mut(..self.size), self.talkers.get_mut(index))
        else {
            return false;
        };
        write_head(payload, index as u32, talker.sent);
        talker.sent += 1;
        match &talker.mouth {
            Mouth::Client(socket, to) => {
                let forwarder = &mut running.forwarder;
                forwarder.now_us = forwarder.engine.now_us();
                forwarder.from_local(socket, payload, *to, EXPEDITED).is_ok()
            }
            Mouth::Far(call) => self.far.as_mut().is_some_and(|far| far.say(*call, payload)),
        }
    }

    fn listen(&mut self, running: &Running) {
        let (received, delays) = (&mut self.received, &mut self.delays);
        let mut heard = |payload: &[u8]| {
            let (call, _, sent_ns) = read_head(payload)?;
            *received += 1;
            delays.add(monotonic_ns().saturating_sub(sent_ns));
            Some(call)
        };
        for event in take(running) {
            if let Event::Udp { data, .. } = event {
                let _ = heard(&data);
            }
        }
        if let Some(far) = &mut self.far {
            far.outgoing.flush();
            far.listen(&mut heard);
        }
    }
}

/// What the crowd's engine has to say.
pub fn take(running: &Running) -> Vec<Event> {
    let (events, resume) = running.engine.events.take(4096);
    if resume {
        running.engine.inboxes.iter().for_each(|inbox| inbox.wake.wake());
    }
    events
}
