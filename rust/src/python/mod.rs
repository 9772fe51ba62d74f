//! The crate as the Python module `opentsm.userplane._core`.

mod convert;
mod events;
mod plane;
mod relays;
#[cfg(feature = "rows")]
mod rows;
mod stats;
mod tcp;

/// The user plane's native module; see `_core.pyi` for what each name does.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use super::events::{
        ControlMessage, DatagramReady, FlowQuiet, FlowSeen, PathAlive, PathSilent, SignalSeen, StreamReady,
        TunnelClosed, TunnelIdle, UdpReceived,
    };
    #[pymodule_export]
    use super::plane::UserPlane;
    #[pymodule_export]
    use super::stats::{FlowStats, RelayLegStats, RelayStats, TunnelStats};
    #[pymodule_export]
    use super::tcp::{TcpAccepted, TcpClosed, TcpConnected, TcpEof, TcpReceived, TcpWritable};

    #[cfg(feature = "rows")]
    #[pymodule_export]
    use super::rows::{row_control, row_datagram, row_stream};

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name Python sees")]
    const version: &str = env!("CARGO_PKG_VERSION");
}
