//! The pure machine alone, on rows in memory: what one command costs before storage, raft and wire.

use bytes::Bytes;
use conclave_state_machine::command::{
    AuthCommand, Caller, Command, Compare, CompareResult, CompareTarget, Permission,
    PermissionKind, Put, Range, RoleGrant, Txn, TxnOp, UserAdd, UserRole,
};
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
/// Commands of one apply batch, as under load.
const BATCH: u64 = 64;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/bench/{number:025}"))
}

fn put(number: u64) -> Put {
    Put { key: key(number), value: Bytes::from(vec![b'v'; VALUE_BYTES]), ..Put::default() }
}

fn apply(machine: &mut Machine, rows: &mut MemoryRows, caller: &Caller, commands: &[Command]) {
    let done = rows.update(|overlay| {
        for command in commands {
            machine.apply(overlay, Position::default(), caller, command)?;
        }
        machine.finish(overlay);
        Ok::<(), conclave_state_machine::response::Halt>(())
    });
    done.expect("rows in memory do not fail");
}

/// A machine that holds `KEYS` keys.
fn loaded() -> (Machine, MemoryRows) {
    let mut rows = MemoryRows::default();
    let mut machine = Machine::load(&rows).expect("an empty store");
    let all: Vec<Command> = (0..KEYS).map(|number| Command::Put(put(number))).collect();
    apply(&mut machine, &mut rows, &Caller::Inside, &all);
    (machine, rows)
}

/// Turns rights on; a user who may write the keys of the benchmark and no others.
fn protect(machine: &mut Machine, rows: &mut MemoryRows) -> Caller {
    let user =
        |name: &str| AuthCommand::UserAdd(UserAdd { name: name.to_owned(), ..UserAdd::default() });
    let owns = |user: &str, role: &str| {
        AuthCommand::UserGrantRole(UserRole { user: user.to_owned(), role: role.to_owned() })
    };
    let writes = Permission {
        kind: PermissionKind::Write,
        key: Bytes::from_static(b"/bench/"),
        range_end: Bytes::from_static(b"/bench0"),
    };
    let all = [
        AuthCommand::RoleAdd("writer".to_owned()),
        AuthCommand::RoleGrant(RoleGrant { role: "writer".to_owned(), permission: Some(writes) }),
        user("root"),
        user("writer"),
        owns("root", "root"),
        owns("writer", "writer"),
        AuthCommand::Enable,
    ];
    apply(machine, rows, &Caller::Inside, &all.map(Command::Auth));
    assert!(machine.head().auth.enabled, "root has its role");
    Caller::User { name: "writer".into(), auth_revision: machine.head().auth.revision }
}

fn plain(number: u64) -> Command {
    Command::Put(put(number))
}

fn update(number: u64) -> Command {
    let get = Range { key: key(number), ..Range::default() };
    let compare = Compare {
        key: key(number),
        range_end: Bytes::new(),
        result: CompareResult::Greater,
        target: CompareTarget::Mod(0),
    };
    Command::Txn(Txn {
        compare: vec![compare],
        success: vec![TxnOp::Put(put(number))],
        failure: vec![TxnOp::Range(get)],
    })
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply a batch of 64");
    group.throughput(Throughput::Elements(BATCH));
    for (name, command, is_protected) in [
        ("put", plain as fn(u64) -> Command, false),
        ("put by a user", plain, true),
        ("compare and put", update, false),
    ] {
        let (mut machine, mut rows) = loaded();
        let caller = if is_protected { protect(&mut machine, &mut rows) } else { Caller::Inside };
        let mut rng = SmallRng::seed_from_u64(1);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (0..BATCH).map(|_| command(rng.random_range(0..KEYS))).collect::<Vec<_>>(),
                |commands| apply(&mut machine, &mut rows, &caller, &commands),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(apply_benches, batches);
criterion_main!(apply_benches);
