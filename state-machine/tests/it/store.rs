//! A machine over memory rows: what every test here drives.

use conclave_state_machine::command::{Caller, Command, Range};
use conclave_state_machine::events::Wanted;
use conclave_state_machine::head::Head;
use conclave_state_machine::history::{self, EventSpan};
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::range;
use conclave_state_machine::response::{Applied, Event, Halt, RangeResponse, Rejection};

pub(crate) struct Store {
    pub(crate) rows: MemoryRows,
    pub(crate) machine: Machine,
    pub(crate) term: u64,
    /// Log index of what is applied, which only leases remember.
    pub(crate) index: u64,
    /// When the next command is proposed.
    pub(crate) unix_ms: i64,
}

impl Store {
    pub(crate) fn new() -> Store {
        let rows = MemoryRows::default();
        let machine = Machine::load(&rows).expect("memory does not fail");
        Store { rows, machine, term: 1, index: 0, unix_ms: 0 }
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Applied {
        self.apply_for(&Caller::Inside, command)
    }

    pub(crate) fn apply_for(&mut self, caller: &Caller, command: &Command) -> Applied {
        self.apply_all(caller, std::slice::from_ref(command), Wanted::default()).remove(0)
    }

    pub(crate) fn apply_wanted(&mut self, command: &Command, wanted: Wanted) -> Applied {
        self.apply_all(&Caller::Inside, std::slice::from_ref(command), wanted).remove(0)
    }

    /// Applies all commands in one overlay, as raft-store does with what is committed at once.
    pub(crate) fn apply_batch(&mut self, commands: &[Command]) -> Vec<Applied> {
        self.apply_all(&Caller::Inside, commands, Wanted::default())
    }

    fn apply_all(
        &mut self,
        caller: &Caller,
        commands: &[Command],
        mut wanted: Wanted,
    ) -> Vec<Applied> {
        let Store { rows, machine, term, index, unix_ms } = self;
        let position = Position { term: *term, index: *index, unix_ms: *unix_ms };
        rows.update(|overlay| {
            let mut applied = Vec::new();
            for command in commands {
                let done = machine.apply_for(overlay, position, (caller, command), &mut wanted)?;
                applied.push(done);
            }
            machine.finish(overlay);
            Ok::<_, Halt>(applied)
        })
        .expect("memory does not fail")
    }

    pub(crate) fn range(&self, request: &Range) -> Result<RangeResponse, Rejection> {
        range::range(&self.rows, self.head(), request).expect("memory does not fail")
    }

    pub(crate) fn history(&self, from: i64, to: i64) -> Vec<Event> {
        history::events(&self.rows, EventSpan::whole(from, to)).expect("memory does not fail")
    }

    pub(crate) fn head(&self) -> &Head {
        self.machine.head()
    }

    /// Forgets everything that is not in the rows.
    pub(crate) fn restart(&mut self) {
        let machine = Machine::load(&self.rows).expect("memory does not fail");
        assert_eq!(machine.head(), self.machine.head(), "the head row holds the whole head");
        self.machine = machine;
    }
}
