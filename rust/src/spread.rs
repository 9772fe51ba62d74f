//! Media that goes more than one way: by both paths while the datagram path is in doubt, by several streams where
//! the client has them. Copies bear a number; the receiver takes the first of each.

use std::sync::Arc;

use crate::counters::Counter;
use crate::egress::Class;
use crate::forward::{Forwarder, Outcome};
use crate::tables::Session;
use crate::tunnel::Tunnel;

impl Forwarder {
    /// Numbered: by datagram, with recovery data of earlier frames where that is agreed; by the streams as well where
    /// the datagram path may be dying, or is none. One way that takes it is enough.
    pub(crate) fn deliver_numbered(
        &mut self,
        session: &Session,
        datagram: Option<&Arc<Tunnel>>,
        data: &[u8],
        by_streams: bool,
    ) -> Outcome {
        let mut frame = std::mem::take(&mut self.doubled);
        frame.clear();
        let number = session.doubt.next_number();
        self.write_numbered(session, number, data, &mut frame);
        let mut outcome = Err(Counter::InnerNoPath);
        if by_streams {
            outcome = self.queue_copies(session, &frame, data.len());
        }
        if let Some((link, tunnel)) = datagram.and_then(|tunnel| tunnel.datagram().zip(Some(tunnel))) {
            self.append_recovery(session, number, data, link.room(), &mut frame);
            outcome = self.deliver_datagram_frame(tunnel, &frame, data.len()).or(outcome);
            if by_streams {
                self.counters.add(Counter::MediaDoubled);
            }
        }
        self.doubled = frame;
        outcome?;
        self.counters.add(Counter::InnerTx);
        Ok(())
    }

    /// On one stream, or with fan-out a copy on each.
    fn queue_copies(&mut self, session: &Session, frame: &[u8], inner: usize) -> Outcome {
        let Some(first) = session.any_stream() else { return Err(Counter::InnerNoPath) };
        let mut outcome = self.queue_copy(&first, frame, inner);
        if session.strands.fans_out() {
            for extra in session.strands.extras().iter().filter(|extra| !Arc::ptr_eq(extra, &first)) {
                outcome = self.queue_copy(extra, frame, inner).or(outcome);
            }
            self.counters.add(Counter::MediaFannedOut);
        }
        outcome
    }

    fn queue_copy(&mut self, stream: &Arc<Tunnel>, frame: &[u8], inner: usize) -> Outcome {
        self.queue_frame(stream, Class::Media, frame).map(|()| stream.tx.count(inner))
    }
}
