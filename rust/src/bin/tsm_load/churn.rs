//! `churn`: clients that come and go at a rate. Each makes its TLS connection, shows its token, gets an address and
//! gives it back; the server closes the tunnel.
//!
//! Runs until its standard input ends (or for `--seconds`) and then prints what came of it. A client that is refused
//! or cut off counts as failed; a rate that cannot be kept shows as fewer done per second, never as a crowd that
//! grows.

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use _core::boundary::{Command, Event};
use _core::crypto::{ClientProfile, ClientSettings, Trust};
use _core::egress::Class;
use _core::engine::Running;

use crate::Options;
use crate::histogram::Histogram;
use crate::messages::{self, Answer};

/// Clients on their way at most.
const AT_ONCE: usize = 128;
/// Between two looks for what has happened.
const LOOK: Duration = Duration::from_micros(500);

struct Churn {
    running: Running,
    server: SocketAddr,
    profile: Arc<ClientProfile>,
    token: Vec<u8>,
    /// Tunnel to when it began and whether it has had its address.
    moving: HashMap<u64, (Instant, bool)>,
    done: u64,
    failed: u64,
    took: Histogram,
}

/// A profile that trusts the authority of `--ca` alone.
pub fn client_profile(options: &Options) -> Result<Arc<ClientProfile>, String> {
    let ca: String = options.get("ca", String::new())?;
    let pem = std::fs::read(&ca).map_err(|e| format!("--ca {ca}: {e}"))?;
    let settings = ClientSettings {
        trust: Trust::Pem(pem),
        alpn: vec![b"opentsm/1".to_vec()],
        require_alpn: true,
        tls12: false,
        ..ClientSettings::default()
    };
    Ok(Arc::new(ClientProfile::new(&settings).map_err(|e| e.detail)?))
}

/// Come and go until the end of the input.
pub fn run(options: &Options) -> Result<String, String> {
    let rate: f64 = options.get("rate", 500.0)?;
    let length = options.seconds(3600.0)?;
    let mut churn = Churn {
        running: Running::start(1).map_err(|e| e.to_string())?,
        server: options.address("to")?,
        profile: client_profile(options)?,
        token: options.get::<String>("token", String::new())?.into_bytes(),
        moving: HashMap::new(),
        done: 0,
        failed: 0,
        took: Histogram::new(),
    };
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    println!("ready");
    let begin = Instant::now();
    let mut begun = 0u64;
    while begin.elapsed() < length && !ended.load(Ordering::Relaxed) {
        let due = (begin.elapsed().as_secs_f64() * rate) as u64;
        while begun < due && churn.moving.len() < AT_ONCE {
            begun += 1;
            churn.begin()?;
        }
        // What the crowd's bound held back is not made up for: it would come as a burst.
        begun = due;
        churn.hear();
        std::thread::sleep(LOOK);
    }
    let seconds = begin.elapsed().as_secs_f64();
    churn.running.stop(0);
    Ok(format!(
        "{{\"done\":{},\"failed\":{},\"seconds\":{seconds:.3},\"rate\":{:.1},\"set_up_us\":{}}}",
        churn.done,
        churn.failed,
        churn.done as f64 / seconds,
        churn.took.summary()
    ))
}

impl Churn {
    fn begin(&mut self) -> Result<(), String> {
        let socket = TcpStream::connect(self.server).map_err(|e| e.to_string())?;
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        let tunnel = self.running.engine.new_id(0);
        let tls = Some((Arc::clone(&self.profile), self.server.ip().to_string()));
        self.order(Command::AttachStream { tunnel, fd: OwnedFd::from(socket), tls });
        self.moving.insert(tunnel, (Instant::now(), false));
        Ok(())
    }

    fn order(&self, command: Command) {
        if let Some(inbox) = self.running.engine.inbox(0) {
            inbox.send(command);
        }
    }

    fn hear(&mut self) {
        let (events, resume) = self.running.engine.events.take(4096);
        if resume {
            self.running.engine.inboxes.iter().for_each(|inbox| inbox.wake.wake());
        }
        for event in events {
            match event {
                Event::StreamReady { tunnel, .. } => {
                    let request = messages::configuration(u64::MAX, &self.token);
                    self.send(tunnel, &request);
                }
                Event::Control { tunnel, data } => self.on_answer(tunnel, &data),
                Event::Closed { tunnel, .. } => match self.moving.remove(&tunnel) {
                    Some((_, true)) => self.done += 1,
                    _ => self.failed += 1,
                },
                _ => {}
            }
        }
    }

    fn on_answer(&mut self, tunnel: u64, data: &[u8]) {
        match messages::read(data) {
            Ok(Answer::Configured { tsid, .. }) => {
                if let Some((began, configured)) = self.moving.get_mut(&tunnel) {
                    *configured = true;
                    self.took.add(began.elapsed().as_nanos() as u64);
                }
                self.send(tunnel, &messages::release(tsid));
            }
            // The answer to our goodbye; the server closes.
            Ok(Answer::Released) => {}
            Ok(Answer::Service { .. }) | Err(_) => {
                self.order(Command::Close { tunnel, reason: "local-close" })
            }
        }
    }

    fn send(&mut self, tunnel: u64, message: &[u8]) {
        let forwarder = &mut self.running.forwarder;
        forwarder.now_us = forwarder.engine.now_us();
        // A tunnel that is gone is counted by its end.
        if let Some(tunnel) = forwarder.engine.tunnels.get(&tunnel) {
            let _ = forwarder.queue_frame(&tunnel, Class::Signalling, message);
        }
    }
}
