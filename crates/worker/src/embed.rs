//! Texts to vectors, between two units of the scheduler's work.

use crate::serve::{End, Server};
use mlxd_engine::{EmbedText, Engine, Sink};
use mlxd_protocol::{Embed, Embedded, Ended, Phase, Report};
use std::time::Instant;

impl<E: Engine> Server<E> {
    /// Turns some of the waiting texts into vectors. False if none waits.
    pub(crate) fn embed(&mut self) -> Result<bool, End> {
        let busy = !self.scheduler.is_idle();
        let pass = self.texts.next_pass(busy);
        if pass.is_empty() {
            return Ok(false);
        }
        self.page.enter(Phase::Prefill);
        for embed in &pass {
            self.sink.report(Report::Admitted(embed.request));
        }
        self.sink.check()?;
        let begun = Instant::now();
        let texts: Vec<EmbedText> = pass
            .iter()
            .map(|embed| EmbedText { tokens: embed.tokens.clone(), dimensions: embed.dimensions })
            .collect();
        let vectors = match self.scheduler.engine_mut().embed(&texts) {
            Ok(vectors) => vectors,
            Err(fault) => {
                let traces: Vec<&str> = pass.iter().map(|embed| embed.trace.as_str()).collect();
                return Err(End::Fault { fault, traces: traces.join(" ") });
            }
        };
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let ms = begun.elapsed().as_millis() as u64;
        tracing::info!(texts = texts.len(), tokens, ms, trace = pass[0].trace, "embedded");
        for (Embed { request, .. }, vector) in pass.into_iter().zip(vectors) {
            self.sink.report(match vector {
                Ok(values) => Report::Embedded(Embedded { request, values }),
                Err(refusal) => Report::Ended(Ended { request, refusal }),
            });
        }
        self.sink.check()?;
        self.page.step(self.scheduler.counts(), self.scheduler.engine(), Instant::now());
        self.commands.woken()?;
        Ok(true)
    }
}
