//! `txn`: comparisons, then the operations for either outcome, each list ended by an empty line.

use std::io::{BufRead, stdin};

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use conclave_client::pb::{
    Compare, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use super::{Context, get, put, words};
use crate::{
    arguments::Flavor,
    failure::Failure,
    output::{parse_int, quote, unquote, write},
    parse::parse,
};

/// Flags of `txn`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print what is expected next.
    #[arg(short, long)]
    interactive: bool,
    #[arg(hide = true)]
    rest: Vec<String>,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    if !arguments.rest.is_empty() {
        return Err(Failure::bad_arguments("txn command does not accept argument"));
    }
    let prompt = |text: &str| {
        if arguments.interactive { write(format!("{text}\n").as_bytes()) } else { Ok(()) }
    };
    let mut input = stdin().lock();
    prompt("compares:")?;
    let compare = list(&mut input, compare)?;
    prompt("success requests (get, put, del):")?;
    let operation = |line: &str| operation(line, context.flavor);
    let success = list(&mut input, operation)?;
    prompt("failure requests (get, put, del):")?;
    let failure = list(&mut input, operation)?;
    drop(input);
    let reply = context.client.send_txn(TxnRequest { compare, success, failure }).await?;
    context.print(&*reply)
}

/// Reads lines up to an empty one. The end of input before that is an error: a truncated
/// transaction must not be run.
fn list<T>(
    input: &mut impl BufRead,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = String::new();
        let length = input
            .read_line(&mut line)
            .map_err(|error| Failure::invalid_input(error.to_string()))?;
        if length == 0 {
            return Err(Failure::invalid_input("EOF"));
        }
        let line = line.trim();
        if line.is_empty() {
            return Ok(items);
        }
        items.push(parse(line)?);
    }
}

/// Parses a comparison such as `mod("key") > "3"`.
fn compare(line: &str) -> Result<Compare, Failure> {
    let malformed =
        |detail: &str| Failure::invalid_input(format!("malformed comparison: {line}{detail}"));
    let (target, rest) = line.split_once('(').ok_or_else(|| malformed(""))?;
    let (key, rest) = quoted_key(rest).ok_or_else(|| malformed(""))?;
    let rest = rest.trim_start();
    let (operator, value) = rest.split_at(rest.find([' ', '"']).unwrap_or(rest.len()));
    let value = unquote(value.trim_start()).map(|(value, _rest)| value);
    let (Some(key), false, Some(value)) = (&key, operator.is_empty(), value) else {
        // etcdctl stops parsing at what it does not understand.
        let operator = if key.is_some() { operator } else { "" };
        let key = quote(&key.unwrap_or_default());
        return Err(malformed(&format!("; got {target}({key}) {operator} \"\"")));
    };
    let result = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(malformed(&format!(" (unknown operator {operator})"))),
    };
    let number = |radix| {
        parse_int(&String::from_utf8_lossy(&value), radix)
            .map_err(|_| Failure::invalid_input(format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target.trim() {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(Bytes::from(value))),
        other => return Err(malformed(&format!(" (unknown target {other})"))),
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: Bytes::from(key.clone()),
        range_end: Bytes::new(),
        target_union: Some(union),
    })
}

/// Splits off the key after the opening parenthesis and what follows the closing one. The key is
/// `None` if it is not quoted.
fn quoted_key(rest: &str) -> Option<(Option<Vec<u8>>, &str)> {
    if let Some((key, rest)) = unquote(rest.trim_start()) {
        return Some((Some(key), rest.trim_start().strip_prefix(')')?));
    }
    rest.split_once(')').map(|(_key, rest)| (None, rest))
}

/// An operation, with the syntax of the command line.
#[derive(Debug, Parser)]
#[command(name = "txn", multicall = true, disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    operation: Operation,
}

#[derive(Debug, Subcommand)]
enum Operation {
    Get(get::Arguments),
    Put(put::Arguments),
    Del(put::DelArguments),
}

fn operation(line: &str, flavor: Flavor) -> Result<RequestOp, Failure> {
    let invalid = || Failure::invalid_input(format!("invalid txn request: {line}"));
    let words = words::split(line);
    if words.len() < 2 {
        return Err(invalid());
    }
    let parsed: Line = parse(words).map_err(|_| invalid())?;
    let request = match parsed.operation {
        Operation::Get(arguments) => Request::RequestRange(arguments.called_as(flavor).request()?),
        Operation::Put(arguments) => {
            let arguments = arguments.called_as(flavor);
            Request::RequestPut(arguments.request(|_key| Err(put::no_value()))?)
        }
        Operation::Del(arguments) => Request::RequestDeleteRange(arguments.request()?),
    };
    Ok(RequestOp { request: Some(request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_are_read_as_etcdctl_reads_them() {
        let compare = compare(r#"mod("a(\"b)") != "3""#).unwrap();
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(3)));
        assert_eq!(
            (compare.result(), compare.target()),
            (CompareResult::NotEqual, CompareTarget::Mod)
        );
        assert_eq!(&compare.key[..], b"a(\"b)");
    }

    #[test]
    fn wrong_compares_are_refused() {
        for line in [
            "x",
            r#"ver(a) = "0""#,
            r#"ver("a") = 0"#,
            r#"foo("a") = "0""#,
            r#"ver("a") ~ "0""#,
            r#"ver("a") = "x""#,
        ] {
            assert!(compare(line).is_err(), "{line}");
        }
    }

    #[test]
    fn operations_take_the_flags_of_their_verbs() {
        let read = |line: &str| operation(line, Flavor::Conclave);
        let get = read(r#"get "a b" --prefix --limit=3"#).unwrap();
        let Some(Request::RequestRange(range)) = get.request else { panic!("a range: {get:?}") };
        assert_eq!(
            (&range.key[..], &range.range_end[..], range.limit),
            (&b"a b"[..], &b"a c"[..], 3)
        );
        for line in ["bogus a", "get a --bogus", "put a", "put a 1 2", "get a b c"] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn etcdctl_does_not_look_at_what_is_too_many() {
        for (line, enough) in
            [("put a 1 2", "put a 1"), ("get a b c", "get a b"), ("put a 'x y'", "put a \"x y\"")]
        {
            let [found, expected] = [line, enough].map(|line| operation(line, Flavor::Etcdctl));
            assert_eq!(found.unwrap(), expected.unwrap(), "{line}");
        }
        assert!(operation("del a b c", Flavor::Etcdctl).is_err());
    }
}
