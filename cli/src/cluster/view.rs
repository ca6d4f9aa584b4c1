//! Shows the state of a local cluster: redrawn in place on a terminal, otherwise printed when it
//! changes.

use std::{
    io::{IsTerminal, stdout},
    time::{Duration, Instant},
};

use conclave_client::{Client, pb::StatusResponse};
use futures::future::join_all;

use super::node::Node;
use crate::{
    failure::Failure,
    output::{Table, human_bytes, write},
};

/// How often an unchanged state is printed where it cannot be redrawn in place.
const REPEAT: Duration = Duration::from_secs(30);

/// What is shown, and on which output.
pub(super) struct View {
    clients: Vec<Client>,
    is_terminal: bool,
    /// Lines of the table on the screen, which the next one replaces.
    drawn_lines: usize,
    /// The summary last printed (who leads, which servers answer), and when.
    printed: Option<(Vec<String>, Instant)>,
}

impl View {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            clients: client.each(),
            is_terminal: stdout().is_terminal(),
            drawn_lines: 0,
            printed: None,
        }
    }

    /// Prints a line that stays on the screen.
    pub(super) fn note(&mut self, text: &str) -> Result<(), Failure> {
        self.drawn_lines = 0;
        write(format!("{text}\n").as_bytes())
    }

    /// Asks all servers for their state and shows it.
    pub(super) async fn show(&mut self, nodes: &[Node]) -> Result<(), Failure> {
        let answers = join_all(self.clients.iter().map(Client::status)).await;
        let mut table = Table::new(&[
            "node",
            "endpoint",
            "pid",
            "state",
            "term",
            "revision",
            "raft index",
            "db size",
        ]);
        let mut states = Vec::new();
        for (node, answer) in nodes.iter().zip(answers) {
            let status = answer.ok().map(|reply| reply.into_inner());
            let state = state(node, status.as_ref());
            states.push(state.to_owned());
            table.row(row(node, state, &status.unwrap_or_default()));
        }
        if !self.is_terminal {
            let is_known = |(printed, at): &(Vec<String>, Instant)| {
                *printed == states && at.elapsed() < REPEAT
            };
            if self.printed.as_ref().is_some_and(is_known) {
                return Ok(());
            }
            self.printed = Some((states, Instant::now()));
            return write(table.render().as_bytes());
        }
        let text = table.render();
        // Moves up to the start of the previous table and clears from there on.
        let up = if self.drawn_lines > 0 {
            format!("\x1b[{}A\x1b[J", self.drawn_lines)
        } else {
            String::new()
        };
        self.drawn_lines = text.lines().count();
        write(format!("{up}{text}").as_bytes())
    }
}

fn state(node: &Node, status: Option<&StatusResponse>) -> &'static str {
    let Some(status) = status else {
        return if node.is_running() { "silent" } else { "ended" };
    };
    let member = status.header.as_ref().map_or(0, |header| header.member_id);
    match status.leader {
        0 => "no leader",
        leader if leader == member => "leader",
        _ if status.is_learner => "learner",
        _ => "follower",
    }
}

fn row(node: &Node, state: &str, status: &StatusResponse) -> Vec<String> {
    let pid = node.pid().filter(|_| node.is_running());
    let mut row = vec![
        node.place.name.clone(),
        node.place.endpoint(),
        pid.map_or("-".to_owned(), |pid| pid.to_string()),
        state.to_owned(),
    ];
    match &status.header {
        Some(header) => row.extend([
            status.raft_term.to_string(),
            header.revision.to_string(),
            status.raft_index.to_string(),
            human_bytes(u64::try_from(status.db_size).unwrap_or(0)),
        ]),
        None => row.extend(std::iter::repeat_n("-".to_owned(), 4)),
    }
    row
}
