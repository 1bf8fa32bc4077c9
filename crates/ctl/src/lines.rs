//! Something that comes line by line from the front, until it ends or Ctrl-C does.

use crate::client::{Failure, broken};
use reqwest::Response;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A longer line is nothing that mlxd sends.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Pieces of an answer. Ctrl-C is the ordinary end of one that has none of its own.
pub(crate) struct Pieces {
    response: Response,
    interrupt: Signal,
}

impl Pieces {
    pub(crate) fn new(response: Response) -> Result<Self, Failure> {
        // Registered before the first piece is shown.
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { response, interrupt })
    }

    /// The next piece, `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        tokio::select! {
            next = self.response.chunk() => next.map_err(broken),
            _ = self.interrupt.recv() => Ok(None),
        }
    }
}

/// Whole lines out of pieces.
#[derive(Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that end in this piece, without their ends.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<Vec<String>, Failure> {
        self.rest.extend_from_slice(piece);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if self.rest.len() > LINE_BYTES_MAX {
            return Err(Failure::Broken(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_cut() {
        let text = "one\n\nzwölf\nrest".as_bytes();
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut found = lines.take(&text[..cut]).unwrap();
            found.extend(lines.take(&text[cut..]).unwrap());
            assert_eq!(found, ["one", "", "zwölf"], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        assert!(Lines::default().take(&vec![b'x'; LINE_BYTES_MAX + 1]).is_err());
    }
}
