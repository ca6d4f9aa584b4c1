//! Conditions of a transaction: a field of every key of a range against an operand.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::command::{Compare, CompareResult, CompareTarget};
use crate::live::{self, Live, Values};
use crate::read::Read;
use crate::response::Halt;
use crate::span::Span;

/// Whether `compare` holds at revision `at`.
///
/// A range without keys is compared like one key whose fields are all 0, except that a missing key
/// has no value, so that a compare of its value never holds.
pub(crate) fn holds<R: Read>(rows: &R, at: i64, compare: &Compare) -> Result<bool, Halt> {
    let mut is_empty = true;
    let mut holds = true;
    let values = match compare.target {
        CompareTarget::Value(_) => Values::Wanted,
        CompareTarget::Version(_)
        | CompareTarget::Create(_)
        | CompareTarget::Mod(_)
        | CompareTarget::Lease(_)
        | CompareTarget::Unknown => Values::Ignored,
    };
    live::visit(rows, at, Span::new(&compare.key, &compare.range_end), values, &mut |live| {
        is_empty = false;
        holds = relation_holds(compare.result, order(&live, &compare.target));
        Ok(if holds { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if is_empty {
        return Ok(match order_of_missing(&compare.target) {
            Some(order) => relation_holds(compare.result, order),
            None => false,
        });
    }
    Ok(holds)
}

fn order(live: &Live<'_>, target: &CompareTarget) -> Ordering {
    match target {
        CompareTarget::Version(version) => live.state.version.cmp(version),
        CompareTarget::Create(revision) => live.state.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => live.mod_revision.cmp(revision),
        CompareTarget::Value(value) => live.state.value.cmp(value.as_ref()),
        CompareTarget::Lease(lease) => live.state.lease.cmp(lease),
        CompareTarget::Unknown => Ordering::Equal,
    }
}

fn order_of_missing(target: &CompareTarget) -> Option<Ordering> {
    match target {
        CompareTarget::Version(number)
        | CompareTarget::Create(number)
        | CompareTarget::Mod(number)
        | CompareTarget::Lease(number) => Some(0.cmp(number)),
        CompareTarget::Value(_) => None,
        CompareTarget::Unknown => Some(Ordering::Equal),
    }
}

fn relation_holds(result: CompareResult, order: Ordering) -> bool {
    match result {
        CompareResult::Equal => order.is_eq(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Unknown => true,
    }
}
