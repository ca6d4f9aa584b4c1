//! `completion`: scripts with which shells complete command lines.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::{
    arguments::{Conclave, Etcdctl, Flavor},
    failure::Failure,
    output::write,
};

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shell, which reads what is printed: `source <(conclave completion bash)`.
    shell: Shell,
}

pub(super) fn run(arguments: Arguments, flavor: Flavor) -> Result<(), Failure> {
    let (mut command, name) = match flavor {
        Flavor::Conclave => (Conclave::command(), "conclave"),
        Flavor::Etcdctl => (Etcdctl::command(), "etcdctl"),
    };
    let mut script = Vec::new();
    generate(arguments.shell, &mut command, name, &mut script);
    write(&script)
}
