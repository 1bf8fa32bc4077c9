//! The end of a log file, and what is written to it afterwards.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{Stream, unfold};
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;

/// Bytes read at once.
const PIECE_BYTES: usize = 16 << 10;

/// How often a followed file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// An open log file, read up to `position`.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: File,
    inode: u64,
    position: u64,
}

impl Tail {
    /// Opens the file so that its last `bytes` come first.
    pub(super) async fn open(path: PathBuf, bytes: u64) -> io::Result<Self> {
        let mut file = File::open(&path).await?;
        let metadata = file.metadata().await?;
        let position = metadata.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(position)).await?;
        Ok(Self { path, file, inode: metadata.ino(), position })
    }

    /// The file's bytes. With `follow` also what is written later, until that is cancelled.
    pub(super) fn into_stream(
        self,
        follow: Option<CancellationToken>,
    ) -> impl Stream<Item = io::Result<Bytes>> {
        unfold((self, follow), |(mut tail, follow)| async move {
            loop {
                match tail.piece().await {
                    Err(error) => return Some((Err(error), (tail, None))),
                    Ok(piece) if !piece.is_empty() => return Some((Ok(piece), (tail, follow))),
                    Ok(_) => {}
                }
                let stop = follow.as_ref()?;
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
                if let Err(error) = tail.reopen_if_replaced().await {
                    return Some((Err(error), (tail, None)));
                }
            }
        })
    }

    /// What comes next; empty at the end of what is there.
    async fn piece(&mut self) -> io::Result<Bytes> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = self.file.read_buf(&mut piece).await?;
        self.position += read as u64;
        Ok(piece.freeze())
    }

    /// A log that grew too long is moved away or begun anew; the new one is read from its start.
    async fn reopen_if_replaced(&mut self) -> io::Result<()> {
        let now = match tokio::fs::metadata(&self.path).await {
            Ok(metadata) => metadata,
            // Between being moved away and being begun anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if now.ino() != self.inode || now.len() < self.position {
            self.file = File::open(&self.path).await?;
            self.inode = self.file.metadata().await?.ino();
            self.position = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::io::Write;
    use std::pin::pin;

    async fn text(stream: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin)) -> String {
        let piece = tokio::time::timeout(Duration::from_secs(10), stream.next());
        let piece = piece.await.expect("something within ten seconds").expect("not the end");
        String::from_utf8(piece.unwrap().to_vec()).unwrap()
    }

    #[actix_web::test]
    async fn a_log_is_followed_through_its_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.log");
        std::fs::write(&path, "one two three").unwrap();
        let stop = CancellationToken::new();
        let tail = Tail::open(path.clone(), 5).await.unwrap();
        let mut stream = pin!(tail.into_stream(Some(stop.clone())));
        assert_eq!(text(&mut stream).await, "three");

        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b" four").unwrap();
        assert_eq!(text(&mut stream).await, " four");

        std::fs::rename(&path, folder.path().join("worker.log.1")).unwrap();
        std::fs::write(&path, "a new one, longer than the old one was").unwrap();
        assert_eq!(text(&mut stream).await, "a new one, longer than the old one was");

        stop.cancel();
        assert!(stream.next().await.is_none());
    }

    #[actix_web::test]
    async fn without_follow_it_ends_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.log");
        std::fs::write(&path, "short").unwrap();
        let tail = Tail::open(path, 1000).await.unwrap();
        let pieces: Vec<_> = tail.into_stream(None).collect().await;
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].as_ref().unwrap(), "short");
    }
}
