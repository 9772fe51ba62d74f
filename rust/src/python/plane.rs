//! `UserPlane`: the commands of the boundary. Arguments are checked here; everything behind trusts them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::convert::{
    Far, adopt_all, early, endpoint, far_end, far_socket, interned, ip, os_code, os_error, prefix, tcp_error,
    unknown, value_error,
};
use super::events::to_python;
use super::relays;
use super::stats::{FlowStats, RelayStats, TunnelStats};
use super::tcp;
use crate::boundary::{Command, StreamListenerShared};
use crate::capture::Capture;
use crate::coding::{Sending, Taking};
use crate::crypto::{
    ClientAuth, ClientProfile, ClientSettings, ServerProfile, ServerSettings, Trust, psk_for,
};
use crate::egress::Class;
use crate::engine::{Engine, Running, Tun};
use crate::limits::MAX_PORT_RANGES;
use crate::tables::detect::{Hints, MediaPort};
use crate::tables::nat::Rule;
use crate::tables::relays::{End, Follow};
use crate::tables::reservations::Reservation;
use crate::tables::session::Policer;
use crate::tables::sockets::BindError;
use crate::tables::strands::Spread;
use crate::tables::{FlowKey, PathMode, Role, Session, Sink, Target};
use crate::tcp::shared::wish;
use crate::tcp::stack::Order;
use crate::tunnel::Tunnel;

/// One engine with its worker threads.
#[pyclass(frozen, module = "opentsm.userplane._core")]
pub struct UserPlane {
    engine: Arc<Engine>,
    running: Mutex<Running>,
    server_profiles: Mutex<Vec<Arc<ServerProfile>>>,
    client_profiles: Mutex<Vec<Arc<ClientProfile>>>,
    #[pyo3(get)]
    event_fd: i32,
}

impl UserPlane {
    #[cfg(feature = "rows")]
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    fn tunnel(&self, id: u64) -> PyResult<Arc<Tunnel>> {
        self.engine.tunnels.get(&id).ok_or_else(|| unknown("tunnel", id))
    }

    fn session(&self, id: u64) -> PyResult<Arc<Session>> {
        self.engine.sessions.get(&id).ok_or_else(|| unknown("session", id))
    }

    fn order(&self, worker: usize, command: Command) {
        if let Some(inbox) = self.engine.inbox(worker) {
            inbox.send(command);
        }
    }

    fn client_profile(&self, id: u64) -> PyResult<Arc<ClientProfile>> {
        self.client_profiles.lock().get(id as usize).cloned().ok_or_else(|| unknown("client TLS profile", id))
    }

    fn server_profile(&self, id: u64) -> PyResult<Arc<ServerProfile>> {
        self.server_profiles.lock().get(id as usize).cloned().ok_or_else(|| unknown("server TLS profile", id))
    }

    fn ddt_key(&self, stream: &Tunnel, tsid: u64) -> PyResult<Option<[u8; 32]>> {
        let link = stream
            .stream()
            .ok_or_else(|| value_error("a datagram tunnel's key comes from a stream tunnel"))?;
        Ok(link.ddt_root.get().map(|root| psk_for(root, tsid)))
    }

    fn arm(&self, tunnel: Arc<Tunnel>) {
        self.order(tunnel.worker(), Command::Arm { tunnel });
    }
}

#[pymethods]
impl UserPlane {
    #[new]
    #[pyo3(signature = (*, workers = 1))]
    fn new(workers: usize) -> PyResult<Self> {
        let running = Running::start(workers).map_err(|e| os_error(&e))?;
        let engine = Arc::clone(&running.engine);
        let event_fd = engine.events.fd();
        Ok(Self {
            engine,
            running: Mutex::new(running),
            server_profiles: Mutex::default(),
            client_profiles: Mutex::default(),
            event_fd,
        })
    }

    #[pyo3(signature = (limit = 512))]
    fn poll(&self, py: Python<'_>, limit: usize) -> PyResult<Vec<Py<PyAny>>> {
        let (events, resume) = self.engine.events.take(limit);
        if resume {
            for inbox in &self.engine.inboxes {
                inbox.wake.wake();
            }
        }
        events.into_iter().map(|event| to_python(py, event)).collect()
    }

    #[pyo3(signature = (flush_ms = 500))]
    fn shutdown(&self, py: Python<'_>, flush_ms: u64) {
        py.detach(|| self.running.lock().stop(flush_ms));
    }

    // -- TLS profiles --------------------------------------------------------------------------------

    #[pyo3(signature = (*, chain_pem, key_pem, client_ca_pem = None, client_auth = "none",
                        alpn = vec!["opentsm/1".to_owned()], tls12 = true))]
    fn server_tls(
        &self,
        chain_pem: Vec<u8>,
        key_pem: Vec<u8>,
        client_ca_pem: Option<Vec<u8>>,
        client_auth: &str,
        alpn: Vec<String>,
        tls12: bool,
    ) -> PyResult<u64> {
        let client_auth = match client_auth {
            "none" => ClientAuth::None,
            "request" => ClientAuth::Request,
            "require" => ClientAuth::Require,
            other => {
                return Err(value_error(format!("client_auth is none, request or require, not {other:?}")));
            }
        };
        let settings = ServerSettings {
            chain_pem,
            key_pem,
            client_ca_pem: client_ca_pem.unwrap_or_default(),
            client_auth,
            require_alpn: !alpn.is_empty(),
            alpn: alpn.into_iter().map(String::into_bytes).collect(),
            tls12,
        };
        let profile = ServerProfile::new(&settings).map_err(|error| value_error(error.detail))?;
        let mut profiles = self.server_profiles.lock();
        profiles.push(Arc::new(profile));
        Ok(profiles.len() as u64 - 1)
    }

    #[pyo3(signature = (*, ca_pem = None, chain_pem = None, key_pem = None,
                        alpn = vec!["opentsm/1".to_owned()], tls12 = true, pin_sha256 = None, verify = true))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python call")]
    fn client_tls(
        &self,
        ca_pem: Option<Vec<u8>>,
        chain_pem: Option<Vec<u8>>,
        key_pem: Option<Vec<u8>>,
        alpn: Vec<String>,
        tls12: bool,
        pin_sha256: Option<Vec<u8>>,
        verify: bool,
    ) -> PyResult<u64> {
        let pin_sha256 = pin_sha256
            .map(|pin| <[u8; 32]>::try_from(pin).map_err(|_| value_error("pin_sha256 must have 32 bytes")))
            .transpose()?;
        let trust = match (verify, ca_pem) {
            (false, _) => Trust::Anything,
            (true, Some(pem)) => Trust::Pem(pem),
            (true, None) => Trust::System,
        };
        let settings = ClientSettings {
            trust,
            pin_sha256,
            chain_pem: chain_pem.unwrap_or_default(),
            key_pem: key_pem.unwrap_or_default(),
            require_alpn: !alpn.is_empty(),
            alpn: alpn.into_iter().map(String::into_bytes).collect(),
            tls12,
        };
        let profile = ClientProfile::new(&settings).map_err(|error| value_error(error.detail))?;
        let mut profiles = self.client_profiles.lock();
        profiles.push(Arc::new(profile));
        Ok(profiles.len() as u64 - 1)
    }

    // -- listeners and outgoing connections ----------------------------------------------------------

    #[pyo3(signature = (fds, *, tls_profile, max_tunnels = 0))]
    fn listen_stream(&self, fds: Vec<i32>, tls_profile: Option<u64>, max_tunnels: usize) -> PyResult<u64> {
        let fds = adopt_all(&fds)?;
        let tls = tls_profile.map(|id| self.server_profile(id)).transpose()?;
        let shared = Arc::new(StreamListenerShared {
            tls: Mutex::new(tls),
            max_tunnels,
            tunnels: AtomicUsize::new(0),
        });
        let listener = self.engine.new_id(0);
        self.engine.stream_listeners.lock().insert(listener, Arc::clone(&shared));
        for (worker, fd) in fds.into_iter().enumerate().take(self.engine.inboxes.len()) {
            crate::sys::set_nonblocking(std::os::fd::AsRawFd::as_raw_fd(&fd)).map_err(|e| os_error(&e))?;
            self.order(worker, Command::ListenStream { listener, fd, shared: Arc::clone(&shared) });
        }
        Ok(listener)
    }

    #[pyo3(signature = (fds, *, dtls))]
    fn listen_datagram(&self, fds: Vec<i32>, dtls: bool) -> PyResult<u64> {
        let sockets = Arc::new(adopt_all(&fds)?);
        let listener = self.engine.new_id(0);
        for worker in 0..self.engine.inboxes.len().min(sockets.len()) {
            self.order(worker, Command::ListenDatagram { listener, sockets: Arc::clone(&sockets), dtls });
        }
        Ok(listener)
    }

    fn set_listener_tls(&self, listener: u64, tls_profile: u64) -> PyResult<()> {
        let profile = self.server_profile(tls_profile)?;
        let listeners = self.engine.stream_listeners.lock();
        let shared = listeners.get(&listener).ok_or_else(|| unknown("stream listener", listener))?;
        *shared.tls.lock() = Some(profile);
        Ok(())
    }

    fn unlisten(&self, listener: u64) {
        self.engine.stream_listeners.lock().remove(&listener);
        for inbox in &self.engine.inboxes {
            inbox.send(Command::Unlisten { listener });
        }
    }

    #[pyo3(signature = (fd, *, tls_profile, server_name = ""))]
    fn attach_stream(&self, fd: i32, tls_profile: Option<u64>, server_name: &str) -> PyResult<u64> {
        let fd = crate::sys::adopt(fd).map_err(|e| os_error(&e))?;
        let profile = tls_profile.map(|id| self.client_profile(id)).transpose()?;
        let worker = self.engine.pick_worker();
        let tunnel = self.engine.new_id(worker);
        let tls = profile.map(|profile| (profile, server_name.to_owned()));
        self.order(worker, Command::AttachStream { tunnel, fd, tls });
        Ok(tunnel)
    }

    #[pyo3(signature = (fd, *, dtls, tsid, stream, rtt_hint_ms = 0))]
    fn attach_datagram(
        &self,
        fd: i32,
        dtls: bool,
        tsid: u64,
        stream: u64,
        rtt_hint_ms: u32,
    ) -> PyResult<u64> {
        let fd = crate::sys::adopt(fd).map_err(|e| os_error(&e))?;
        let stream = self.tunnel(stream)?;
        let session = stream.session().as_ref().map(|s| s.id);
        let session = session.ok_or_else(|| value_error("the stream tunnel belongs to no session yet"))?;
        let psk = self.ddt_key(&stream, tsid)?;
        if dtls != psk.is_some() {
            return Err(value_error("DTLS pairs with TLS, UDP with TCP"));
        }
        let worker = self.engine.pick_worker();
        let tunnel = self.engine.new_id(worker);
        self.order(worker, Command::AttachDatagram { tunnel, fd, psk, tsid, session, rtt_hint_ms });
        Ok(tunnel)
    }

    #[pyo3(signature = (*, stream, tsid, lifetime_ms))]
    fn reserve(&self, stream: u64, tsid: u64, lifetime_ms: u64) -> PyResult<()> {
        let stream = self.tunnel(stream)?;
        let session = stream.session().as_ref().map(|s| s.id);
        let session = session.ok_or_else(|| value_error("the stream tunnel belongs to no session yet"))?;
        let psk = self.ddt_key(&stream, tsid)?;
        let now_ms = self.engine.now_us() / 1_000;
        let row = Reservation { psk, session, expires_ms: now_ms + lifetime_ms };
        if self.engine.reservations.insert(tsid, row, now_ms) {
            return Ok(());
        }
        Err(os_code(libc::ENOBUFS))
    }

    fn unreserve(&self, tsid: u64) {
        self.engine.reservations.take(tsid, 0);
    }

    // -- sessions ------------------------------------------------------------------------------------

    #[pyo3(signature = (session, *, role, addresses, sink = "route", inter_client = true,
                        upstream_rate = 0, downstream_rate = 0))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python call")]
    fn session_open(
        &self,
        session: u64,
        role: &str,
        addresses: Vec<String>,
        sink: &str,
        inter_client: bool,
        upstream_rate: u64,
        downstream_rate: u64,
    ) -> PyResult<()> {
        let role = match role {
            "server" => Role::Server,
            "client" => Role::Client,
            other => {
                return Err(value_error(format!("role is server or client, not {other:?}")));
            }
        };
        let sink = match sink {
            "route" => Sink::Route,
            "local" => Sink::Local,
            other => return Err(value_error(format!("sink is route or local, not {other:?}"))),
        };
        if self.engine.sessions.get(&session).is_some() {
            return Err(value_error(format!("session {session} is open already")));
        }
        let addresses = addresses.iter().map(|a| ip(a)).collect::<PyResult<Vec<_>>>()?;
        let mut new = Session::new(session, role, addresses, sink);
        new.inter_client = inter_client;
        new.upstream = (upstream_rate > 0).then(|| Policer::new(upstream_rate));
        new.downstream = (downstream_rate > 0).then(|| Policer::new(downstream_rate));
        let new = Arc::new(new);
        if role == Role::Server {
            self.engine.routes.add_session(&new);
        }
        self.engine.sessions.insert(session, new);
        Ok(())
    }

    fn session_close(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        let known = py.detach(|| self.engine.forget_session(session, "session-closed"));
        if known { Ok(()) } else { Err(unknown("session", session)) }
    }

    #[pyo3(signature = (session, tunnel, tsid, *, fresh = false, linger = false, idle_ms = 0, keepalive_ms = 0,
                        silent_after_ms = 0, media_age_ms = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python call")]
    fn attach(
        &self,
        session: u64,
        tunnel: u64,
        tsid: u64,
        fresh: bool,
        linger: bool,
        idle_ms: u32,
        keepalive_ms: u32,
        silent_after_ms: u32,
        media_age_ms: Option<u64>,
    ) -> PyResult<()> {
        let session = self.session(session)?;
        let tunnel = self.tunnel(tunnel)?;
        if fresh {
            session.doubt.renumbered();
        }
        tunnel.set_tsid(tsid);
        tunnel.set_session(Some(Arc::clone(&session)));
        if let Some(old) = session.attach(&tunnel).filter(|_| !linger) {
            old.set_session(None);
            self.engine.order_close(old.id, "replaced");
        }
        self.engine.tell_tcp(&session, Order::Back);
        if let Some(max_ms) = media_age_ms {
            tunnel.wishes.media_age_ms.store(max_ms, Ordering::Release);
        }
        if idle_ms > 0 || keepalive_ms > 0 {
            tunnel.wishes.idle_ms.store(idle_ms, Ordering::Release);
            tunnel.wishes.silent_ms.store(silent_after_ms, Ordering::Release);
            tunnel.wishes.keepalive_ms.store(keepalive_ms, Ordering::Release);
            self.arm(tunnel);
        }
        Ok(())
    }

    #[pyo3(signature = (session, *, factor = 0, fec = false, compress = false,
                        take_recovery = false, take_compressed = false))]
    #[allow(clippy::fn_params_excessive_bools, reason = "keyword arguments of a Python call")]
    fn set_coding(
        &self,
        session: u64,
        factor: u8,
        fec: bool,
        compress: bool,
        take_recovery: bool,
        take_compressed: bool,
    ) -> PyResult<()> {
        if factor > 2 {
            return Err(value_error("factor is 0, 1 or 2"));
        }
        let coding = &self.session(session)?.coding;
        coding.take(Taking { recovery: take_recovery, compressed: take_compressed });
        coding.send(Sending { factor, fec, compress });
        Ok(())
    }

    fn coding_stats(&self, session: u64) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.session(session)?.coding.numbers().into_iter().collect())
    }

    fn attach_extra(&self, session: u64, tunnel: u64, tsid: u64) -> PyResult<()> {
        let session = self.session(session)?;
        let tunnel = self.tunnel(tunnel)?;
        if tunnel.is_datagram() {
            return Err(value_error("only streams may be attached beside the main one"));
        }
        tunnel.set_tsid(tsid);
        tunnel.set_session(Some(session));
        Ok(())
    }

    fn use_extra(&self, session: u64, tunnel: u64, used: bool) -> PyResult<()> {
        let (session, tunnel) = (self.session(session)?, self.tunnel(tunnel)?);
        if !used {
            session.strands.remove(&tunnel);
        } else if !session.strands.add(&tunnel) {
            return Err(os_code(libc::ENOBUFS));
        }
        Ok(())
    }

    fn set_spread(&self, session: u64, spread: u8) -> PyResult<()> {
        let spread = Spread::from_number(spread).ok_or_else(|| value_error("spread is 0, 1 or 2"))?;
        self.session(session)?.strands.set_spread(spread);
        Ok(())
    }

    fn set_breaker(&self, session: u64, datagram: bool, every_ms: u64) -> PyResult<()> {
        self.session(session)?.gate(datagram).set(every_ms * 1_000);
        Ok(())
    }

    fn capture(&self, py: Python<'_>, session: u64, path: Option<&str>) -> PyResult<()> {
        let session = self.session(session)?;
        let new = path
            .map(|path| Capture::open(Path::new(path)).map(Arc::new))
            .transpose()
            .map_err(|e| os_error(&e))?;
        if let Some(old) = session.capture.swap(new) {
            py.detach(|| old.finish());
        }
        Ok(())
    }

    // -- steering ------------------------------------------------------------------------------------

    #[pyo3(signature = (session, *, protocol, port, ipv6 = false, far = None, mode, media = true))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python call")]
    fn steer(
        &self,
        session: u64,
        protocol: u8,
        port: u16,
        ipv6: bool,
        far: Far,
        mode: u8,
        media: bool,
    ) -> PyResult<()> {
        let mode = PathMode::from_number(mode).ok_or_else(|| value_error("mode is 0, 1 or 2"))?;
        let key = FlowKey { protocol, v6: ipv6, port, far: far_end(&far)? };
        if self.session(session)?.flows.set(key, mode, media) {
            return Ok(());
        }
        Err(os_code(libc::ENOBUFS))
    }

    #[pyo3(signature = (session, *, protocol, port, ipv6 = false, far = None))]
    fn unsteer(&self, session: u64, protocol: u8, port: u16, ipv6: bool, far: Far) -> PyResult<()> {
        let key = FlowKey { protocol, v6: ipv6, port, far: far_end(&far)? };
        let session = self.session(session)?;
        session.flows.unset(&key);
        session.detector.forget(MediaPort { v6: ipv6, port });
        Ok(())
    }

    #[pyo3(signature = (session, *, signals, datagram, ports = Vec::new(), expedited = false))]
    fn watch_media(
        &self,
        session: u64,
        signals: bool,
        datagram: bool,
        ports: Vec<(u16, u16)>,
        expedited: bool,
    ) -> PyResult<()> {
        let session = self.session(session)?;
        if ports.len() > MAX_PORT_RANGES {
            return Err(value_error(format!("more than {MAX_PORT_RANGES} ranges of ports")));
        }
        session.signals.watch(signals);
        session.detector.set_hints(Hints { ports, expedited, datagram });
        Ok(())
    }

    // -- routing on a server -------------------------------------------------------------------------

    #[pyo3(signature = (prefix_text, tun))]
    fn route_tun(&self, prefix_text: &str, tun: u64) -> PyResult<()> {
        if self.engine.tuns.get(&tun).is_none() {
            return Err(unknown("TUN device", tun));
        }
        self.engine.routes.set_prefix(prefix(prefix_text)?, Some(Target::Tun(tun)));
        Ok(())
    }

    fn route_local(&self, address: &str) -> PyResult<()> {
        self.engine.routes.set_prefix(prefix(address)?, Some(Target::Local));
        Ok(())
    }

    #[pyo3(signature = (prefix_text))]
    fn route_core(&self, prefix_text: &str) -> PyResult<()> {
        self.engine.routes.set_prefix(prefix(prefix_text)?, Some(Target::Core));
        Ok(())
    }

    #[pyo3(signature = (*, r#match, protocol, port, to, allow = true))]
    fn rewrite(&self, r#match: &str, protocol: u8, port: u16, to: Far, allow: bool) -> PyResult<u64> {
        let id = self.engine.new_id(0);
        let rule = Rule { id, prefix: prefix(r#match)?, protocol, port, allow, to: far_end(&to)? };
        self.engine.policies.add(rule);
        Ok(id)
    }

    #[pyo3(signature = (prefix_text))]
    fn unroute(&self, prefix_text: &str) -> PyResult<()> {
        self.engine.routes.set_prefix(prefix(prefix_text)?, None);
        Ok(())
    }

    fn unrewrite(&self, rule: u64) {
        self.engine.policies.remove(rule);
    }

    #[pyo3(signature = (fds, *, session = None))]
    fn add_tun(&self, fds: Vec<i32>, session: Option<u64>) -> PyResult<u64> {
        let queues = adopt_all(&fds)?;
        for queue in &queues {
            crate::sys::set_nonblocking(std::os::fd::AsRawFd::as_raw_fd(queue)).map_err(|e| os_error(&e))?;
        }
        let session = session.map(|id| self.session(id)).transpose()?;
        let tun = Arc::new(Tun::new(self.engine.new_id(0), queues, session));
        self.engine.tuns.insert(tun.id, Arc::clone(&tun));
        for worker in 0..self.engine.inboxes.len().min(tun.queues.len()) {
            self.order(worker, Command::AddTun { tun: Arc::clone(&tun) });
        }
        Ok(tun.id)
    }

    fn remove_tun(&self, tun: u64) -> PyResult<()> {
        let device = self.engine.tuns.remove(&tun).ok_or_else(|| unknown("TUN device", tun))?;
        self.engine.routes.remove_tun(tun);
        for inbox in &self.engine.inboxes {
            inbox.send(Command::RemoveTun { tun: Arc::clone(&device) });
        }
        Ok(())
    }

    // -- tunnels -------------------------------------------------------------------------------------

    fn send_control(&self, py: Python<'_>, tunnel: u64, data: &[u8]) -> bool {
        let Some(tunnel) = self.engine.tunnels.get(&tunnel) else {
            return false;
        };
        py.detach(|| {
            let mut running = self.running.lock();
            let forwarder = &mut running.forwarder;
            forwarder.now_us = self.engine.now_us();
            let sent = if tunnel.is_datagram() {
                forwarder.send_frame(&tunnel, data)
            } else {
                forwarder.queue_frame(&tunnel, Class::Signalling, data)
            };
            forwarder.flush_datagrams();
            if sent.is_ok() {
                forwarder.counters.add(crate::counters::Counter::ControlTx);
            }
            sent.is_ok()
        })
    }

    #[pyo3(signature = (tunnel, *, reason = "local-close"))]
    fn close(&self, tunnel: u64, reason: &str) {
        self.engine.order_close(tunnel, interned(reason));
    }

    #[pyo3(signature = (tunnel, *, interval_ms, silent_after_ms = 0, size = 0))]
    fn set_keepalive(&self, tunnel: u64, interval_ms: u32, silent_after_ms: u32, size: u32) -> PyResult<()> {
        let tunnel = self.tunnel(tunnel)?;
        tunnel.wishes.probe_size.store(size, Ordering::Release);
        tunnel.wishes.silent_ms.store(silent_after_ms, Ordering::Release);
        tunnel.wishes.keepalive_ms.store(interval_ms, Ordering::Release);
        self.arm(tunnel);
        Ok(())
    }

    #[pyo3(signature = (tunnel, *, idle_ms))]
    fn set_idle(&self, tunnel: u64, idle_ms: u32) -> PyResult<()> {
        let tunnel = self.tunnel(tunnel)?;
        tunnel.wishes.idle_ms.store(idle_ms, Ordering::Release);
        self.arm(tunnel);
        Ok(())
    }

    #[pyo3(signature = (tunnel, *, max_ms))]
    fn set_media_age(&self, tunnel: u64, max_ms: u64) -> PyResult<()> {
        self.tunnel(tunnel)?.wishes.media_age_ms.store(max_ms, Ordering::Release);
        Ok(())
    }

    fn set_nagle(&self, tunnel: u64, nagle: bool) -> PyResult<()> {
        let tunnel = self.tunnel(tunnel)?;
        let link = tunnel.stream().ok_or_else(|| value_error("Nagle's algorithm belongs to TCP"))?;
        // The lock keeps the owner from closing the descriptor meanwhile.
        let fd = link.fd.lock();
        let Some(fd) = *fd else { return Err(unknown("tunnel", tunnel.id)) };
        crate::sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, i32::from(!nagle))
            .map_err(|e| os_error(&e))
    }

    // -- local inner UDP sockets ---------------------------------------------------------------------

    #[pyo3(signature = (*, session, address, port, queue = 256))]
    fn udp_open(&self, session: Option<u64>, address: &str, port: u16, queue: usize) -> PyResult<(u64, u16)> {
        let address = ip(address)?;
        if let Some(id) = session {
            let session = self.session(id)?;
            if !session.owns(address) {
                return Err(value_error(format!("{address} is not an inner address of session {id}")));
            }
        }
        let id = self.engine.new_id(0);
        match self.engine.sockets.bind(id, session, address, port, queue) {
            Ok(socket) => Ok((id, socket.port)),
            Err(BindError::InUse) => Err(os_code(libc::EADDRINUSE)),
            Err(BindError::TooMany) => Err(os_code(libc::EMFILE)),
        }
    }

    #[pyo3(signature = (socket, data, address, port, tos = 0))]
    fn udp_send(
        &self,
        py: Python<'_>,
        socket: u64,
        data: &[u8],
        address: &str,
        port: u16,
        tos: u8,
    ) -> PyResult<Option<&'static str>> {
        let to = SocketAddr::new(ip(address)?, port);
        let socket = self.engine.sockets.get(socket).ok_or_else(|| unknown("socket", socket))?;
        Ok(py.detach(|| {
            let mut running = self.running.lock();
            let forwarder = &mut running.forwarder;
            forwarder.now_us = self.engine.now_us();
            let outcome = forwarder.from_local(&socket, data, to, tos);
            forwarder.flush_datagrams();
            outcome.err().map(crate::counters::Counter::name)
        }))
    }

    fn udp_close(&self, socket: u64) {
        self.engine.sockets.close(socket);
    }

    // -- inner TCP -----------------------------------------------------------------------------------

    #[pyo3(signature = (*, session, address, port, backlog = 128, mtu = 1400))]
    fn tcp_listen(
        &self,
        session: Option<u64>,
        address: &str,
        port: u16,
        backlog: usize,
        mtu: usize,
    ) -> PyResult<(u64, u16)> {
        session.map(|id| self.session(id)).transpose()?;
        let local = SocketAddr::new(ip(address)?, port);
        tcp::listen(&self.engine, session, local, backlog, mtu).map_err(tcp_error)
    }

    fn tcp_unlisten(&self, listener: u64) {
        self.engine.tcp.unlisten(listener);
    }

    #[pyo3(signature = (*, session, local, remote, mtu = 1400))]
    fn tcp_connect(
        &self,
        session: Option<u64>,
        local: (String, u16),
        remote: (String, u16),
        mtu: usize,
    ) -> PyResult<u64> {
        session.map(|id| self.session(id)).transpose()?;
        tcp::connect(&self.engine, session, endpoint(&local)?, endpoint(&remote)?, mtu).map_err(tcp_error)
    }

    fn tcp_send(&self, connection: u64, data: &[u8]) -> PyResult<usize> {
        tcp::send(&self.engine, connection, data).ok_or_else(|| unknown("connection", connection))
    }

    fn tcp_consumed(&self, connection: u64, length: usize) {
        tcp::consumed(&self.engine, connection, length);
    }

    fn tcp_shutdown(&self, connection: u64) {
        tcp::wish(&self.engine, connection, wish::SHUTDOWN);
    }

    fn tcp_close(&self, connection: u64) {
        tcp::wish(&self.engine, connection, wish::CLOSE);
    }

    fn tcp_abort(&self, connection: u64) {
        tcp::wish(&self.engine, connection, wish::ABORT);
    }

    // -- media relay ---------------------------------------------------------------------------------

    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    #[pyo3(signature = (
        *, local_a, local_b, remote_a, remote_b, early_a = vec![], early_b = vec![], core_a = false,
        core_b = false, rtp = true, rtcp = false
    ))]
    fn relay_open(
        &self,
        local_a: (String, u16),
        local_b: (String, u16),
        remote_a: Far,
        remote_b: Far,
        early_a: Vec<String>,
        early_b: Vec<String>,
        core_a: bool,
        core_b: bool,
        rtp: bool,
        rtcp: bool,
    ) -> PyResult<u64> {
        let ends = [
            End { local: endpoint(&local_a)?, remote: far_socket(&remote_a)?, early: early(&early_a)? },
            End { local: endpoint(&local_b)?, remote: far_socket(&remote_b)?, early: early(&early_b)? },
        ];
        relays::open(&self.engine, ends, [core_a, core_b], Follow { rtp, rtcp }).map_err(|e| os_error(&e))
    }

    #[pyo3(signature = (relay, *, remote_a = None, remote_b = None, follow = None))]
    fn relay_update(
        &self,
        relay: u64,
        remote_a: Far,
        remote_b: Far,
        follow: Option<(bool, bool)>,
    ) -> PyResult<()> {
        let known = self.engine.relays.get(relay).ok_or_else(|| unknown("relay", relay))?;
        let follow = follow.map(|(rtp, rtcp)| Follow { rtp, rtcp });
        known.update([far_socket(&remote_a)?, far_socket(&remote_b)?], follow);
        Ok(())
    }

    fn relay_close(&self, py: Python<'_>, relay: u64) -> PyResult<RelayStats> {
        let closed = relays::close(&self.engine, relay).ok_or_else(|| unknown("relay", relay))?;
        RelayStats::of(py, &closed, self.engine.now_us())
    }

    fn relay_stats(&self, py: Python<'_>, relay: u64) -> PyResult<RelayStats> {
        let known = self.engine.relays.get(relay).ok_or_else(|| unknown("relay", relay))?;
        RelayStats::of(py, &known, self.engine.now_us())
    }

    // -- numbers -------------------------------------------------------------------------------------

    fn tunnel_stats(&self, tunnel: u64) -> PyResult<TunnelStats> {
        Ok(TunnelStats::of(&*self.tunnel(tunnel)?, self.engine.now_us()))
    }

    fn flow_stats(&self, session: u64) -> PyResult<Vec<FlowStats>> {
        Ok(self.session(session)?.flows.snapshot().into_iter().map(FlowStats::from).collect())
    }

    fn session_drops(&self, session: u64) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.session(session)?.drop_counts().into_iter().collect())
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.engine.counters()
    }
}
