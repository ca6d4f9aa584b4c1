//! Words of golden scripts about members.
//!
//! ```text
//! configure ID...     a configuration is applied          removed     ids that never come back
//! seat ID URL,... [started] [reachable] [learner] [matched=N]     replaces the seat with this id
//! roster [lenient] [learners=N] [last=N]                          rules and the leader's last entry
//! change add URL,... [learner] | remove ID | update ID URL,... | promote ID
//! ```

use std::collections::BTreeSet;

use conclave_state_machine::members::rules::{MemberChange, Roster, Seat};
use conclave_state_machine::members::{self};
use conclave_state_machine::response::Halt;

use crate::language::{Parsed, Words, number};
use crate::store::Store;

/// What scripts say of members beside what is stored.
pub(crate) struct Members {
    roster: Roster,
    configured: BTreeSet<u64>,
}

impl Members {
    pub(crate) fn new() -> Members {
        let roster =
            Roster { seats: Vec::new(), last_index: 100, is_strict: true, learners_max: 1 };
        Members { roster, configured: BTreeSet::new() }
    }

    /// Runs a command if it is one of these.
    pub(crate) fn run(
        &mut self,
        name: &str,
        words: &mut Words,
        store: &mut Store,
    ) -> Parsed<Option<Vec<String>>> {
        let lines = match name {
            "configure" => self.configure(words, store)?,
            "removed" => {
                let removed = members::removed(&store.rows).expect("memory does not fail");
                vec![format!("{removed:?}")]
            }
            "seat" => self.seat(words)?,
            "roster" => self.rules(words)?,
            "change" => match self.roster.check(&change(words)?) {
                Ok(()) => vec!["allowed".to_owned()],
                Err(refusal) => vec![format!("refused: {refusal}")],
            },
            _ => return Ok(None),
        };
        Ok(Some(lines))
    }

    fn configure(&mut self, words: &mut Words, store: &mut Store) -> Parsed<Vec<String>> {
        let ids = words.options().iter().map(|(id, _)| number(id)).collect::<Parsed<_>>()?;
        let before = std::mem::replace(&mut self.configured, ids);
        let update = store.rows.update(|rows| {
            members::reconfigure(rows, &before, &self.configured);
            Ok::<_, Halt>(())
        });
        update.expect("memory does not fail");
        Ok(Vec::new())
    }

    fn seat(&mut self, words: &mut Words) -> Parsed<Vec<String>> {
        let id = number(&words.word()?)?;
        let mut seat = Seat { id, peer_urls: urls(words)?, ..Seat::default() };
        for (name, value) in words.options() {
            match name.as_str() {
                "started" => seat.is_started = true,
                "reachable" => seat.is_reachable = true,
                "learner" => seat.is_learner = true,
                "matched" => seat.matched = number(&value)?,
                _ => return Err(format!("unknown option {name:?}")),
            }
        }
        self.roster.seats.retain(|other| other.id != id);
        self.roster.seats.push(seat);
        Ok(Vec::new())
    }

    fn rules(&mut self, words: &mut Words) -> Parsed<Vec<String>> {
        for (name, value) in words.options() {
            match name.as_str() {
                "lenient" => self.roster.is_strict = false,
                "learners" => self.roster.learners_max = number(&value)?,
                "last" => self.roster.last_index = number(&value)?,
                _ => return Err(format!("unknown option {name:?}")),
            }
        }
        Ok(Vec::new())
    }
}

fn urls(words: &mut Words) -> Parsed<Vec<String>> {
    Ok(words.word()?.split(',').map(str::to_owned).collect())
}

fn change(words: &mut Words) -> Parsed<MemberChange> {
    let id = |words: &mut Words| number(&words.word()?);
    Ok(match words.word()?.as_str() {
        "add" => {
            let peer_urls = urls(words)?;
            let is_learner = words.options().iter().any(|(name, _)| name == "learner");
            MemberChange::Add { peer_urls, is_learner }
        }
        "remove" => MemberChange::Remove { id: id(words)? },
        "update" => MemberChange::Update { id: id(words)?, peer_urls: urls(words)? },
        "promote" => MemberChange::Promote { id: id(words)? },
        other => return Err(format!("unknown change {other:?}")),
    })
}
