//! Optional pcap of a session's inner packets. A thread of its own writes; a slow disk drops, it never delays.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::limits::CAPTURE_QUEUE;

/// LINKTYPE_RAW: packets begin with the IP header.
const LINKTYPE_RAW: u32 = 101;
const SNAP_LENGTH: u32 = 65_535;

struct Captured {
    at: SystemTime,
    packet: Box<[u8]>,
}

/// An open capture; dropping it flushes and closes the file.
#[derive(Debug)]
pub struct Capture {
    sender: Mutex<Option<SyncSender<Captured>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Capture {
    /// Create (or overwrite) the file and start writing.
    pub fn open(path: &Path) -> io::Result<Capture> {
        let mut file = BufWriter::new(File::create(path)?);
        write_header(&mut file)?;
        file.flush()?;
        let (sender, receiver) = sync_channel(CAPTURE_QUEUE);
        let writer = std::thread::Builder::new()
            .name("tsm-capture".into())
            .spawn(move || write_packets(file, &receiver))?;
        Ok(Capture { sender: Mutex::new(Some(sender)), writer: Mutex::new(Some(writer)) })
    }

    /// Record one packet. False if the writer does not keep up.
    pub fn record(&self, packet: &[u8]) -> bool {
        let captured = Captured { at: SystemTime::now(), packet: packet.into() };
        match self.sender.lock().as_ref().map(|s| s.try_send(captured)) {
            Some(Err(TrySendError::Full(_))) => false,
            Some(_) | None => true,
        }
    }

    /// Write out what is queued and close.
    pub fn finish(&self) {
        self.sender.lock().take();
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // The last reference may be dropped by a packet thread: let the writer end by itself.
        self.sender.lock().take();
    }
}

fn write_header(file: &mut impl Write) -> io::Result<()> {
    file.write_all(&0xa1b2_c3d4u32.to_ne_bytes())?;
    file.write_all(&2u16.to_ne_bytes())?;
    file.write_all(&4u16.to_ne_bytes())?;
    file.write_all(&[0; 8])?;
    file.write_all(&SNAP_LENGTH.to_ne_bytes())?;
    file.write_all(&LINKTYPE_RAW.to_ne_bytes())
}

fn write_packets(mut file: BufWriter<File>, receiver: &Receiver<Captured>) {
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        while let Some(captured) = next {
            if write_packet(&mut file, &captured).is_err() {
                return;
            }
            next = receiver.try_recv().ok();
        }
        if file.flush().is_err() {
            return;
        }
    }
}

fn write_packet(file: &mut impl Write, captured: &Captured) -> io::Result<()> {
    let at = captured.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let length = captured.packet.len() as u32;
    for field in [at.as_secs() as u32, at.subsec_micros(), length, length] {
        file.write_all(&field.to_ne_bytes())?;
    }
    file.write_all(&captured.packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_in_the_file_once_it_is_finished() {
        let path = std::env::temp_dir().join(format!("opentsm-capture-{}.pcap", std::process::id()));
        let capture = Capture::open(&path).unwrap();
        assert!(capture.record(&[0x45; 20]) && capture.record(&[0x60; 40]));
        capture.finish();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 20 + 16 + 40);
        assert_eq!(&bytes[40..60], &[0x45; 20]);
    }
}
