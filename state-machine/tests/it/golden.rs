//! Golden scripts in `tests/scripts`: one situation each, its first line says what it shows.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p conclave-state-machine` rewrites the answers; review them as code.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use conclave_state_machine::auth::{self, Rights, check};
use conclave_state_machine::command::{Caller, Command, Range};
use conclave_state_machine::leases::LeaseRow;
use conclave_state_machine::locks::queue;
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::read::Table;
use conclave_state_machine::response::Rejection;
use conclave_state_machine::revision::Revision;
use conclave_state_machine::{kv, leases, members, sessions, validate};
use goldenscript::{Argument, Context};

use crate::language::{self, Words};
use crate::print;
use crate::registry_words;
use crate::roster::Members;
use crate::store::Store;

/// `--max-txn-ops` of scripts.
const TXN_OPS_MAX: usize = 8;

const NO_FAILURE: &str = "memory does not fail";

struct Script {
    store: Store,
    members: Members,
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the scripts are files")]
fn scripts_answer_as_recorded() {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let directory = Path::new(&package).join("tests/scripts");
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        println!("{}", path.display());
        let first_line = std::fs::read_to_string(&path).unwrap();
        assert!(first_line.starts_with("# "), "{}: say first what it shows", path.display());
        let mut script = Script { store: Store::new(), members: Members::new() };
        goldenscript::run(&mut script, &path).unwrap();
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &Self::Command,
        context: &Context,
    ) -> Result<String, Box<dyn Error>> {
        let words = command.args.iter().map(|argument| match argument {
            Argument::Positional(word) => word.clone(),
            Argument::KeyValue(name, value) => format!("{name}={value}"),
            other => other.to_string(),
        });
        let mut words = Words::new(words);
        let caller = self.caller(context.prefix.as_deref())?;
        let lines = self.run_words(&caller, &command.name, &mut words)?;
        words.finish()?;
        let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
        Ok(format!("{command}\n{lines}"))
    }
}

impl Script {
    /// `USER:` or `USER@AUTH_REVISION:` before a command says who asks, `nobody:` that nobody does;
    /// without it the cluster itself does.
    fn caller(&self, prefix: Option<&str>) -> Result<Caller, String> {
        let Some(prefix) = prefix else { return Ok(Caller::Inside) };
        if prefix == "nobody" {
            return Ok(Caller::Anonymous);
        }
        let current = self.store.head().auth.revision;
        let (name, auth_revision) = match prefix.split_once('@') {
            Some((name, number)) => (name, number.parse().map_err(|_| "not a revision")?),
            None => (prefix, current),
        };
        Ok(Caller::User { name: name.into(), auth_revision })
    }

    fn run_words(
        &mut self,
        caller: &Caller,
        name: &str,
        words: &mut Words,
    ) -> Result<Vec<String>, String> {
        if let Some(lines) = self.members.run(name, words, &mut self.store)? {
            return Ok(lines);
        }
        Ok(match name {
            "may_read" => self.may_read(&words.word()?, &language::range(words)?),
            "users" => self.users(),
            "roles" => self.roles(),
            "range" => match self.store.range(&language::range(words)?) {
                Ok(answer) => print::range(&answer),
                Err(rejection) => vec![format!("refused: {rejection}")],
            },
            "read_txn" => {
                let Command::Txn(txn) = language::command("txn", words)? else {
                    return Err("not a transaction".to_owned());
                };
                match kv::read_txn(&self.store.rows, self.store.head(), &txn).expect(NO_FAILURE) {
                    Ok(answer) => print::txn(&answer),
                    Err(rejection) => vec![format!("refused: {rejection}")],
                }
            }
            "history" => {
                let Command::Compact(from) = language::command("compact", words)? else {
                    return Err("not a revision".to_owned());
                };
                let events = self.store.history(from.revision, self.store.head().revision);
                events.iter().map(print::event).collect()
            }
            "leases" => self.leases(),
            "queue" => self.queue(&words.word()?),
            "sessions" => {
                let sessions = sessions::list(&self.store.rows, 1, 100).expect(NO_FAILURE);
                let line = |(id, row): &(i64, LeaseRow)| {
                    format!("{id} ttl={} owner={:?} {:?}", row.ttl, row.owner, row.metadata)
                };
                sessions.iter().map(line).collect()
            }
            "members" => {
                let members = members::all(&self.store.rows).expect(NO_FAILURE);
                members.iter().map(|member| format!("{} {}", member.id, member.name)).collect()
            }
            "head" => self.head(),
            "rows" => rows(&self.store.rows),
            "restart" => {
                self.store.restart();
                Vec::new()
            }
            "entry" => {
                self.store.index = words.number()?.unsigned_abs();
                Vec::new()
            }
            "term" => {
                self.store.term += 1;
                vec![format!("term {}", self.store.term)]
            }
            _ => {
                if let Some(lines) = registry_words::ask(&self.store, name, words)? {
                    return Ok(lines);
                }
                let command = language::command(name, words)?;
                match check(&command) {
                    Ok(()) => print::applied(&self.store.apply_for(caller, &command)),
                    Err(rejection) => vec![format!("refused unproposed: {rejection}")],
                }
            }
        })
    }

    /// Whether a user may read a range: what the serving member asks.
    fn may_read(&self, user: &str, range: &Range) -> Vec<String> {
        let rights = Rights::load(&self.store.rows, user).expect(NO_FAILURE).unwrap_or_default();
        match check::range(&rights, &range.key, &range.range_end) {
            Ok(()) => vec!["yes".to_owned()],
            Err(rejection) => vec![format!("no: {rejection}")],
        }
    }

    fn users(&self) -> Vec<String> {
        let rows = &self.store.rows;
        let describe = |name: &String| {
            let user = auth::user(rows, name).expect(NO_FAILURE).unwrap_or_default();
            let bare = if user.no_password { " no_password" } else { "" };
            format!("{name} roles=[{}]{bare}", user.roles.join(" "))
        };
        auth::users(rows).expect(NO_FAILURE).iter().map(describe).collect()
    }

    fn roles(&self) -> Vec<String> {
        let rows = &self.store.rows;
        let describe = |name: &String| {
            let role = auth::role(rows, name).expect(NO_FAILURE).unwrap_or_default();
            let grants = role.permissions.iter().map(|one| {
                format!(
                    " {:?} {}..{}",
                    one.kind,
                    print::text(&one.key),
                    print::text(&one.range_end)
                )
            });
            format!("{name}{}", grants.collect::<String>())
        };
        auth::roles(rows).expect(NO_FAILURE).iter().map(describe).collect()
    }

    fn leases(&self) -> Vec<String> {
        let rows = &self.store.rows;
        let leases = leases::all(rows).expect(NO_FAILURE);
        let describe = |(id, ttl): &(i64, i64)| {
            let keys = leases::lease_keys(rows, *id).expect(NO_FAILURE);
            let keys: Vec<_> = keys.iter().map(print::text).collect();
            format!("{id} ttl={ttl} keys=[{}]", keys.join(" "))
        };
        leases.iter().map(describe).collect()
    }

    /// The places of a name, `*` for those that hold.
    fn queue(&self, name: &str) -> Vec<String> {
        let (rows, at) = (&self.store.rows, self.store.head().revision);
        let holders = queue::holders(rows, at, name.as_bytes()).expect(NO_FAILURE);
        let mut lines = Vec::new();
        queue::visit(rows, at, name.as_bytes(), &mut |place| {
            let star = if holders.contains(&place) { "*" } else { " " };
            lines.push(format!("{star} {}", print::place(&place)));
            ControlFlow::Continue(())
        })
        .expect(NO_FAILURE);
        lines
    }

    fn head(&self) -> Vec<String> {
        let head = self.store.head();
        vec![format!(
            "revision {} compacted {} keys {} bytes {} size {} alarms {:?}",
            head.revision,
            head.compacted,
            head.key_count,
            head.bytes_in_use,
            head.size_in_use(),
            head.alarms
        )]
    }
}

/// What the server checks before it proposes.
fn check(command: &Command) -> Result<(), Rejection> {
    match command {
        Command::Put(put) => validate::put(put),
        Command::DeleteRange(delete) => validate::key(&delete.key),
        Command::Txn(txn) => validate::txn(txn, TXN_OPS_MAX),
        _ => Ok(()),
    }
}

/// Which rows there are, without what is in them.
fn rows(rows: &MemoryRows) -> Vec<String> {
    let keys: Vec<_> = rows.rows(Table::Key).map(|(key, _)| print::text(key)).collect();
    let revisions: Vec<_> = rows
        .rows(Table::Rev)
        .map(|(key, _)| Revision::from_row_key(key).expect("the key of a rev row"))
        .map(|at| format!("{}.{}", at.main, at.sub))
        .collect();
    vec![format!("key rows: {}", keys.join(" ")), format!("rev rows: {}", revisions.join(" "))]
}
