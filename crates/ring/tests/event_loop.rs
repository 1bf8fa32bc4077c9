//! The front's ends in a tokio event loop: it never blocks, sleeps on the doorbells, and moves a
//! record far longer than the ring in both directions at once.

mod peer;

use std::io::ErrorKind;
use std::os::fd::AsFd;

use mlxd_ring::{PendingSend, Reader, RingError, SendError, Writer};
use peer::{PATIENCE, Peer, SMALL};
use tokio::io::Interest;
use tokio::net::UnixStream;

#[test]
#[ignore = "the other process of the tests here"]
fn as_child() {
    if peer::role().as_deref() != Some("echo") {
        return;
    }
    let mut link = peer::attach();
    let mut record = Vec::new();
    while let Ok(Some(kind)) = link.commands.recv(&mut record, Some(PATIENCE)) {
        let sent = link.tokens.send(kind, &record, Some(PATIENCE));
        sent.expect("the front reads while it sends");
    }
}

/// An end of a ring, and a second descriptor of its doorbell for tokio to watch.
struct Belled<T> {
    end: T,
    bell: UnixStream,
}

impl<T: AsFd> Belled<T> {
    fn new(end: T) -> Self {
        let fd = end.as_fd().try_clone_to_owned().expect("a descriptor");
        let bell = UnixStream::from_std(fd.into()).expect("registered");
        Self { end, bell }
    }

    /// Waits for the bell and lets `woken` empty it.
    async fn heard<E>(&mut self, woken: impl FnOnce(&mut T) -> Result<(), E>) -> Result<(), E> {
        self.bell.readable().await.expect("a doorbell");
        let mut heard = Ok(());
        let emptied = self.bell.try_io(Interest::READABLE, || {
            heard = woken(&mut self.end);
            Err::<(), _>(ErrorKind::WouldBlock.into())
        });
        assert!(emptied.is_err());
        heard
    }
}

async fn send(writer: &mut Belled<Writer>, mut pending: PendingSend) -> Result<(), SendError> {
    while !writer.end.try_send_piece(&mut pending)? {
        if writer.end.prepare_wait()? {
            writer.heard(Writer::woken).await?;
        }
    }
    Ok(())
}

async fn recv(reader: &mut Belled<Reader>, record: &mut Vec<u8>) -> Result<u16, RingError> {
    loop {
        if let Some(kind) = reader.end.try_recv(record)? {
            return Ok(kind);
        }
        if reader.end.prepare_sleep()? {
            reader.heard(Reader::woken).await?;
        }
    }
}

#[tokio::test]
async fn a_long_record_goes_and_comes_back_without_blocking() {
    let peer = Peer::start("echo", &SMALL);
    let Peer { mut child, link } = peer;
    let mut commands = Belled::new(link.commands);
    let mut tokens = Belled::new(link.tokens);

    let payload: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let expected = payload.clone();
    let sending = async {
        for kind in 0..20_u16 {
            let pending = PendingSend::new(kind, payload.clone());
            send(&mut commands, pending).await.expect("sent");
            send(&mut commands, PendingSend::new(100, Vec::new())).await.expect("sent");
        }
    };
    let receiving = async {
        let mut record = Vec::new();
        for kind in 0..20_u16 {
            assert_eq!(recv(&mut tokens, &mut record).await.expect("sound"), kind);
            assert!(record == expected);
            assert_eq!(recv(&mut tokens, &mut record).await.expect("sound"), 100);
            assert!(record.is_empty());
        }
    };
    let both = async { tokio::join!(sending, receiving) };
    tokio::time::timeout(PATIENCE, both).await.expect("in time");

    child.kill().expect("killed");
    let mut record = Vec::new();
    let end = tokio::time::timeout(PATIENCE, recv(&mut tokens, &mut record));
    let end = end.await.expect("in time");
    assert!(matches!(end, Err(RingError::PeerGone)), "{end:?}");
    child.wait().expect("waited");
    let long = PendingSend::new(1, vec![0; 100_000]);
    let closed = tokio::time::timeout(PATIENCE, send(&mut commands, long));
    let closed = closed.await.expect("in time").expect_err("a dead reader takes no long record");
    assert!(matches!(closed, SendError::Closed), "{closed:?}");
}
