//! Clients: each asks the twin, asks the instance, and keeps what came and when.

use super::requests::{Ask, Manner};
use super::{World, unix_ms};
use crate::answer::{Answer, Outcome};
use fastrand::Rng;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// One request and what became of it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) model: usize,
    pub(super) ask: Ask,
    pub(super) began_ms: u64,
    pub(super) ended_ms: u64,
    pub(super) expected: Answer,
    pub(super) outcome: Outcome,
    /// When each event of a stream was read.
    pub(super) read_at: Vec<Instant>,
}

/// Asks until the run is over.
pub(super) fn ask_on_and_on(world: &World, model: usize, number: usize) {
    let stream = (model as u64) << 32 | number as u64;
    let mut random = Rng::with_seed(world.plan.seed.wrapping_mul(0x9e37_79b9).wrapping_add(stream));
    while !world.is_over() {
        let ask = Ask::random(&mut random, world.plan.engine, world.names[model]);
        let response = world.twin.client().post(ask.path, &ask.unstreamed());
        let expected = match Outcome::read(response, |_, _| ControlFlow::Continue(())) {
            Outcome::Whole(expected) => expected,
            other => return world.trouble(format!("the twin gave {other:?} to {}", ask.body)),
        };
        let record = ask_once(world, model, ask, expected);
        world.records.lock().expect("no thread panicked").push(record);
    }
}

fn ask_once(world: &World, model: usize, ask: Ask, expected: Answer) -> Record {
    let began_ms = unix_ms();
    let mut read_at = Vec::new();
    let outcome = match ask.manner {
        Manner::Leaves { after } if !ask.is_stream() => leave(world, &ask, after),
        manner => follow(world, &ask, manner, &mut read_at),
    };
    Record { model, ask, began_ms, ended_ms: unix_ms(), expected, outcome, read_at }
}

fn cut(error: &std::io::Error) -> Outcome {
    Outcome::Cut { so_far: Answer::default(), reason: error.to_string() }
}

fn follow(world: &World, ask: &Ask, manner: Manner, read_at: &mut Vec<Instant>) -> Outcome {
    let json = [("content-type", "application/json")];
    let body = ask.body.to_string();
    let response = world.front.client().try_request("POST", ask.path, &json, body.as_bytes());
    let response = match response {
        Ok(response) => response,
        Err(error) => return cut(&error),
    };
    Outcome::read(response, |event, _| {
        read_at.push(event.at);
        match manner {
            Manner::Leaves { after } if read_at.len() as u64 > after => ControlFlow::Break(()),
            Manner::Slow { pause_ms } => {
                std::thread::sleep(Duration::from_millis(pause_ms));
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    })
}

/// Sends a request, and hangs up without having read anything.
fn leave(world: &World, ask: &Ask, after_ms: u64) -> Outcome {
    let body = ask.body.to_string();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        ask.path,
        body.len()
    );
    let sent = world.front.client().connect().and_then(|mut connection| {
        connection.write_all((head + &body).as_bytes())?;
        std::thread::sleep(Duration::from_millis(after_ms));
        Ok(())
    });
    sent.map_or_else(|error| cut(&error), |()| Outcome::HungUp(Answer::default()))
}
