//! `counter` and `latch`: shared numbers, and waiting for one to reach 0.

use std::time::Duration;

use clap::Subcommand;
use conclave_client::counter::Count;
use conclave_client::latch::Remaining;
use serde_json::json;

use super::Context;
use crate::{failure::Failure, output::Rows};

/// What to do with counters.
#[derive(Debug, Subcommand)]
pub(crate) enum Counter {
    /// Print a counter; one that does not exist is 0.
    Get {
        /// Its name, which is its key.
        name: String,
    },
    /// Add a number, and print the sum.
    Add {
        /// Its name.
        name: String,
        /// What to add; may be negative.
        #[arg(allow_hyphen_values = true, default_value_t = 1)]
        delta: i64,
    },
    /// Replace the number.
    Set {
        /// Its name.
        name: String,
        /// The new number.
        #[arg(allow_hyphen_values = true)]
        value: i64,
        /// Only if the counter has this value; if not, the exit code is 1.
        #[arg(long, allow_hyphen_values = true)]
        if_value: Option<i64>,
    },
}

/// What to do with latches.
#[derive(Debug, Subcommand)]
pub(crate) enum Latch {
    /// Create a latch with a count, unless it exists.
    Create {
        /// Its name, which is its key.
        name: String,
        /// How many times it has to be counted down.
        count: i64,
    },
    /// Count down.
    Down {
        /// Its name.
        name: String,
        /// By how much.
        #[arg(default_value_t = 1)]
        by: i64,
    },
    /// Print the remaining count.
    Get {
        /// Its name.
        name: String,
    },
    /// Wait until the count is 0.
    Wait {
        /// Its name.
        name: String,
        /// Wait for at most this long.
        #[arg(long, value_parser = conclave_server::config::duration)]
        wait: Option<Duration>,
    },
}

pub(super) async fn counter(context: &Context, verb: Counter) -> Result<(), Failure> {
    let of = |name: String| context.client.counter(name);
    let count = match verb {
        Counter::Get { name } => of(name).get().await?,
        Counter::Add { name, delta } => of(name).add(delta).await?,
        Counter::Set { name, value, if_value: None } => of(name).set(value).await?,
        Counter::Set { name, value, if_value: Some(expected) } => {
            let exchange = of(name).compare_and_set(expected, value).await?;
            if !exchange.is_done {
                let message = format!("the counter is {}", exchange.count.value);
                return Err(Failure::error(message));
            }
            exchange.count
        }
    };
    let Count { value, revision } = count;
    let rows = vec![vec![json!(value), json!(revision)]];
    context.print(&Rows { titles: &["value", "revision"], rows })
}

pub(super) async fn latch(context: &Context, verb: Latch) -> Result<(), Failure> {
    let of = |name: String| context.client.latch(name);
    let remaining = match verb {
        Latch::Create { name, count } => of(name).create(count).await?,
        Latch::Down { name, by } => of(name).count_down_by(by).await?,
        Latch::Get { name } => of(name).remaining().await?,
        Latch::Wait { name, wait } => {
            let what = format!("the latch {name} was not counted down");
            return super::meet::wait(of(name).wait(), wait, &what).await;
        }
    };
    let Remaining { count, revision } = remaining;
    let rows = vec![vec![json!(count), json!(revision)]];
    context.print(&Rows { titles: &["remaining", "revision"], rows })
}
