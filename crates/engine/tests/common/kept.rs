//! A sink that keeps everything.

use mlxd_engine::Sink;
use mlxd_protocol::{Report, TokenRecord};

/// What was published, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Report(Report),
    Tokens(Vec<TokenRecord>),
}

#[derive(Debug, Default)]
pub struct Kept(pub Vec<Said>);

impl Kept {
    /// Everything published since the last call.
    pub fn take(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.0)
    }
}

impl Sink for Kept {
    fn report(&mut self, report: Report) {
        self.0.push(Said::Report(report));
    }
    fn tokens(&mut self, records: &[TokenRecord]) {
        self.0.push(Said::Tokens(records.to_vec()));
    }
}
