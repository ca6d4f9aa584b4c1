//! Random commands over few keys, values, leases and revisions, so that they meet.

use bytes::Bytes;
use conclave_state_machine::command::{
    AlarmAction, AlarmChange, AlarmKind, Command, Compact, Compare, CompareResult, CompareTarget,
    DeleteRange, LeaseExpire, LeaseGrant, LeaseRevoke, MemberRecord, Put, Range, SortOrder,
    SortTarget, Txn, TxnOp,
};
use proptest::prelude::*;

/// One step of a random program.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Commands of one apply batch.
    Apply(Vec<Command>),
    Range(Range),
    ReadTxn(Txn),
    History(i64),
    Restart,
    NextTerm,
}

pub(crate) fn program() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(command(), 1..5).prop_map(Step::Apply),
        4 => range().prop_map(Step::Range),
        1 => txn().prop_map(Step::ReadTxn),
        1 => (0..40_i64).prop_map(Step::History),
        1 => Just(Step::Restart),
        1 => Just(Step::NextTerm),
    ];
    prop::collection::vec(step, 1..40)
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        16 => put().prop_map(Command::Put),
        5 => delete().prop_map(Command::DeleteRange),
        8 => txn().prop_map(Command::Txn),
        3 => revision().prop_map(|revision| Command::Compact(Compact { revision })),
        3 => (lease(), ttl()).prop_map(|(id, ttl)| Command::LeaseGrant(LeaseGrant { id, ttl })),
        1 => lease().prop_map(|id| Command::LeaseRevoke(LeaseRevoke { id })),
        1 => (1..4_u64, prop::collection::vec(lease(), 0..4))
            .prop_map(|(term, ids)| Command::LeaseExpire(LeaseExpire {
                term,
                ids,
                ..LeaseExpire::default()
            })),
        1 => alarm().prop_map(Command::Alarm),
        1 => (0..3_u64).prop_map(|id| {
            Command::MemberPublish(MemberRecord { id, ..MemberRecord::default() })
        }),
    ]
}

fn key() -> impl Strategy<Value = Bytes> {
    let keys = ["a", "b", "b\0", "c", "\0", "\u{7f}"].map(Bytes::from_static_str);
    prop_oneof![40 => prop::sample::select(keys.to_vec()), 1 => Just(Bytes::new())]
}

/// `Bytes::from_static` for text, as a method so that arrays of text can be mapped.
trait FromText {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromText for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

fn range_end() -> impl Strategy<Value = Bytes> {
    let ends = ["", "", "\0", "b", "c", "d"].map(Bytes::from_static_str);
    prop::sample::select(ends.to_vec())
}

fn value() -> impl Strategy<Value = Bytes> {
    let short = ["", "x", "y", "a longer value than the others have"].map(Bytes::from_static_str);
    // Too large for the row of the newest state.
    let large = [b'l', b'm'].map(|letter| Bytes::from(vec![letter; 3_000]));
    prop_oneof![3 => prop::sample::select(short.to_vec()), 1 => prop::sample::select(large.to_vec())]
}

fn lease() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![0, 1, 2, -1, i64::MAX])
}

fn ttl() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![2, 60, 9_000_000_000, 9_000_000_001, -5])
}

fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![20 => -1..40_i64, 1 => any::<i64>()]
}

fn put() -> impl Strategy<Value = Put> {
    let lease = prop_oneof![3 => Just(0), 1 => lease()];
    let ignored = prop_oneof![3 => Just((false, false)), 1 => any::<(bool, bool)>()];
    (key(), value(), lease, any::<bool>(), ignored).prop_map(
        |(key, value, lease, prev_kv, (ignore_value, ignore_lease))| Put {
            key,
            value: if ignore_value && lease == 0 { Bytes::new() } else { value },
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRange {
        key,
        range_end,
        prev_kv,
    })
}

pub(crate) fn range() -> impl Strategy<Value = Range> {
    let read_at = prop_oneof![1 => Just(0), 1 => revision()];
    let bound = || prop_oneof![4 => Just(0), 1 => 0..20_i64];
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (
        (key(), range_end(), read_at, prop_oneof![Just(0), -1..5_i64, Just(i64::MAX)]),
        (order, target),
        flags,
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(|((key, range_end, revision, limit), sort, flags, bounds)| Range {
            key,
            range_end,
            limit,
            revision,
            sort_order: sort.0,
            sort_target: sort.1,
            keys_only: flags.0,
            count_only: flags.1,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        })
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = prop::sample::select(vec![
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
        CompareResult::Unknown,
    ]);
    let target = prop_oneof![
        (0..4_i64).prop_map(CompareTarget::Version),
        (0..30_i64).prop_map(CompareTarget::Create),
        (0..30_i64).prop_map(CompareTarget::Mod),
        value().prop_map(CompareTarget::Value),
        lease().prop_map(CompareTarget::Lease),
        Just(CompareTarget::Unknown),
    ];
    (key(), range_end(), result, target).prop_map(|(key, range_end, result, target)| Compare {
        key,
        range_end,
        result,
        target,
    })
}

pub(crate) fn txn() -> impl Strategy<Value = Txn> {
    let flat_op = prop_oneof![
        3 => put().prop_map(TxnOp::Put),
        1 => delete().prop_map(TxnOp::DeleteRange),
        2 => range().prop_map(TxnOp::Range),
    ];
    let op = flat_op.prop_recursive(3, 12, 3, |op| txn_of(op).prop_map(TxnOp::Txn));
    txn_of(op)
}

fn txn_of(op: impl Strategy<Value = TxnOp> + Clone) -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), ops(), ops())
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
}

fn alarm() -> impl Strategy<Value = AlarmChange> {
    // Most that is cleared is not raised.
    let action = prop_oneof![
        1 => Just(AlarmAction::Get),
        1 => Just(AlarmAction::Activate),
        8 => Just(AlarmAction::Deactivate),
    ];
    let kind = prop::sample::select(vec![AlarmKind::None, AlarmKind::NoSpace, AlarmKind::Corrupt]);
    (action, 0..2_u64, kind).prop_map(|(action, member, alarm)| AlarmChange {
        action,
        member,
        alarm,
    })
}
