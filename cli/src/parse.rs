//! Parses command lines as Go's flag packages parse etcdctl's, wherever that differs from clap.
//!
//! A switch takes a value after `=`, the last of several values of a flag counts, and an empty
//! variable counts as unset. The rules are applied to the finished clap commands, so that no flag
//! can be missed.

use std::{
    env,
    ffi::{OsStr, OsString},
};

use clap::{Arg, ArgAction, Command, CommandFactory as _, Parser, builder::Resettable};
use conclave_server::config;

use crate::{
    arguments::Etcdctl,
    command::{WATCH_KEY, WATCH_RANGE_END},
};

/// Selects the second or third API in etcdctl; here there is only the third.
const API: &str = "ETCDCTL_API";

/// Parses a command line.
///
/// # Errors
/// What is wrong with it, or the help text that it asks for.
pub(crate) fn parse<T: Parser>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<T, clap::Error> {
    let mut command = as_in_go(T::command());
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The value of a switch.
pub(crate) fn boolean(text: &str) -> Result<bool, &'static str> {
    config::boolean(text).ok_or("expected true or false")
}

/// Names of variables that begin like those of the client verbs but are unknown: most likely typing
/// errors. Without their values, which may be secrets.
pub(crate) fn unknown_variables() -> Vec<String> {
    let command = Etcdctl::command();
    let of_flags = command.get_arguments().filter_map(Arg::get_env);
    let mut known: Vec<&OsStr> = of_flags.collect();
    known.extend([API, WATCH_KEY, WATCH_RANGE_END].map(OsStr::new));
    let names =
        env::vars_os().map(|(name, _)| name).filter(|name| !known.contains(&name.as_os_str()));
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| name.starts_with("ETCDCTL_")).collect()
}

fn as_in_go(command: Command) -> Command {
    command.args_override_self(true).mut_args(argument).mut_subcommands(as_in_go)
}

fn argument(argument: Arg) -> Arg {
    let variable = argument.get_env().map(OsString::from);
    let is_empty = variable.and_then(env::var_os).is_some_and(|value| value.is_empty());
    let argument = if is_empty { argument.env(Resettable::Reset) } else { argument };
    if matches!(argument.get_action(), ArgAction::SetTrue) { switch(argument) } else { argument }
}

/// Makes a flag a switch that is on when given, unless its value says otherwise.
fn switch(argument: Arg) -> Arg {
    let argument = match argument.get_default_values() {
        [] => argument.default_value("false").hide_default_value(true),
        _ => argument,
    };
    argument
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_name("BOOL")
        .value_parser(boolean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Conclave;

    #[test]
    fn the_command_line_is_consistent() {
        as_in_go(Conclave::command()).debug_assert();
        as_in_go(Etcdctl::command()).debug_assert();
    }

    /// All switches of a command and its subcommands, each with the words that lead to its command.
    fn switches(command: &Command, words: &[String]) -> Vec<(Vec<String>, String)> {
        let own = command.get_arguments().filter(|argument| {
            matches!(argument.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
        });
        let mut found: Vec<(Vec<String>, String)> = own
            .map(|argument| (words.to_vec(), argument.get_long().expect("a name").to_owned()))
            .collect();
        for below in command.get_subcommands() {
            let words = [words, &[below.get_name().to_owned()]].concat();
            found.extend(switches(below, &words));
        }
        found
    }

    /// The value that the command named by `words` gets for the switch in `argument`.
    fn found(command: &Command, words: &[String], argument: String) -> Option<bool> {
        let line = [words, std::slice::from_ref(&argument)].concat();
        let command = command.clone().ignore_errors(true);
        let mut matches = command.try_get_matches_from(line).expect("errors are ignored");
        while let Some((_, below)) = matches.remove_subcommand() {
            matches = below;
        }
        let name = argument.trim_start_matches('-').split('=').next().expect("a name");
        let id = name.replace('-', "_");
        matches.try_get_one::<bool>(&id).expect("a switch").copied()
    }

    #[test]
    fn every_switch_takes_every_spelling_of_go() {
        let plain = Conclave::command();
        let command = as_in_go(plain.clone());
        let switches = switches(&plain, &["conclave".to_owned()]);
        assert!(switches.len() > 35, "{switches:?}");
        for (words, name) in switches {
            for (value, is_on) in [("", true), ("=T", true), ("=1", true), ("=0", false)] {
                let argument = format!("--{name}{value}");
                assert_eq!(found(&command, &words, argument), Some(is_on), "{words:?} {name}");
            }
        }
    }

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(short, long)]
        interactive: bool,
        #[arg(long, default_value_t = true)]
        checked: bool,
        #[arg(long, default_value_t = 0)]
        limit: u8,
        words: Vec<String>,
    }

    fn line(arguments: &[&str]) -> Result<Line, clap::Error> {
        parse(["line"].iter().chain(arguments).map(|&argument| OsString::from(argument)))
    }

    #[test]
    fn switches_are_off_or_as_they_say_until_they_are_given() {
        let read = |arguments: &[&str]| {
            let line = line(arguments).unwrap();
            (line.interactive, line.checked, line.limit)
        };
        assert_eq!(read(&[]), (false, true, 0));
        assert_eq!(read(&["-i", "--checked=False"]), (true, false, 0));
        assert_eq!(read(&["-i=0", "--checked"]), (false, true, 0));
        assert_eq!(read(&["--limit=1", "--limit=2", "-i", "-i=f"]), (false, true, 2));
        let line = line(&["--interactive", "a", "--", "--checked=false"]).unwrap();
        assert_eq!(
            (line.words.as_slice(), line.checked),
            (&["a", "--checked=false"].map(str::to_owned)[..], true)
        );
    }

    #[test]
    fn values_and_flags_that_nobody_knows_are_refused() {
        for arguments in [&["--checked=maybe"][..], &["--checked="], &["--prefix=false"]] {
            assert!(line(arguments).is_err(), "{arguments:?}");
        }
    }
}
