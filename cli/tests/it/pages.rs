//! The commands of the guides and of the runbook, as they stand there.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::{
    COMMAND_TIMEOUT, named, run,
    server::{Server, free_port},
    until,
};

/// The scripts that the pages let run.
const SCRIPTS: [&str; 4] = ["job.sh", "next.sh", "serve.sh", "work.sh"];

/// The shell blocks of a guide.
fn blocks(page: &str) -> Vec<&str> {
    let begins = page.split("```sh\n").skip(1);
    begins.map(|rest| rest.split_once("```").expect("the block ends").0).collect()
}

/// A shell for commands of a page, which find `conclave` and the scripts.
fn shell(directory: &Path, program: &Path, endpoint: &str, commands: &str) -> Command {
    for name in SCRIPTS {
        let path = directory.join(name);
        fs::write(&path, "#!/bin/sh\necho at work\n").expect("a script");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let ours = program.parent().expect("a directory").display();
    let path = std::env::var("PATH").expect("a PATH");
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", commands]).current_dir(directory).stdin(Stdio::null());
    shell.env("PATH", format!("{ours}:{path}")).env("ETCDCTL_ENDPOINTS", endpoint);
    // The default of 5 s is little on a machine that is busy with other things.
    shell.env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT);
    shell
}

fn said(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
}

/// Runs the shell blocks of a guide one after the other; what they print.
fn run_guide(page: &str, expected: usize) -> String {
    let (_link, etcd) = named("etcd");
    let (_other, program) = named("conclave");
    let server = Server::single(etcd);
    let dir = TempDir::new().unwrap();
    let blocks = blocks(page);
    assert_eq!(blocks.len(), expected, "the blocks of\n{page}");
    let mut printed = String::new();
    for block in blocks {
        let output = shell(dir.path(), &program, &server.endpoint(), block).output().unwrap();
        assert!(output.status.success(), "{block}\n{}", said(&output));
        printed.push_str(&said(&output));
    }
    printed
}

#[test]
fn the_guide_to_counters_runs() {
    let printed = run_guide(include_str!("../../../docs/counters.md"), 1);
    let values: Vec<&str> =
        printed.lines().filter_map(|line| line.split_once(',')).map(|(value, _)| value).collect();
    assert_eq!(values, ["0", "1", "4", "5", "5"], "{printed}");
}

#[test]
fn the_guide_to_latches_runs() {
    let printed = run_guide(include_str!("../../../docs/latches.md"), 1);
    assert!(printed.contains("at work"), "{printed}");
}

#[test]
fn the_guide_to_barriers_runs() {
    let printed = run_guide(include_str!("../../../docs/barriers.md"), 2);
    assert_eq!(printed.matches("at work").count(), 4, "{printed}");
}

#[test]
fn the_guide_to_groups_runs() {
    let printed = run_guide(include_str!("../../../docs/groups.md"), 1);
    assert!(printed.contains("at work"), "{printed}");
}

#[test]
fn the_guide_to_locks_runs() {
    let printed = run_guide(include_str!("../../../docs/locks.md"), 1);
    assert!(printed.contains("at work") && printed.contains("nobody holds jobs/1"), "{printed}");
}

#[test]
fn the_guide_to_elections_runs() {
    let printed = run_guide(include_str!("../../../docs/native-elections.md"), 1);
    assert!(printed.contains("at work"), "{printed}");
}

#[test]
fn the_guide_to_configuration_runs() {
    let printed = run_guide(include_str!("../../../docs/config.md"), 1);
    assert!(printed.contains("5432"), "{printed}");
}

/// A process that is ended with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `## Grow` of the runbook with addresses of this machine: the new member comes from nothing else.
#[test]
fn the_runbooks_way_to_grow_works() {
    let page = include_str!("../../../docs/runbook.md");
    let (_, grow) = page.split_once("\n## Grow\n").expect("the section");
    let (grow, _) = grow.split_once("\n## ").expect("its end");
    let blocks: Vec<&str> = grow.split("```\n").skip(1).step_by(2).collect();
    let [add, start] = blocks[..] else { panic!("two blocks: {blocks:?}") };

    let (_link, etcd) = named("etcd");
    let (_other, program) = named("conclave");
    let server = Server::single(etcd);
    let dir = TempDir::new().unwrap();
    let [client, peer] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let here = |commands: &str| {
        let data = dir.path().join("data");
        commands
            .replace("http://10.0.0.4:2379,http://127.0.0.1:2379", &format!("http://{client}"))
            .replace("10.0.0.4:2379", &client)
            .replace("10.0.0.4:2380", &peer)
            .replace("/var/lib/conclave", data.to_str().expect("UTF-8"))
    };
    let endpoint = server.endpoint();
    // etcd's rule, and ours: nobody is added while a member has not told its name.
    until("a member is added", || {
        let added = shell(dir.path(), &program, &endpoint, &here(add)).output().unwrap();
        added.status.success() && fs::read_to_string(dir.path().join("n4.env")).unwrap() != ""
    });
    // The shell becomes the server, so that the test can end it.
    let start = here(start).replace("conclave server", "exec conclave server");
    let mut process = shell(dir.path(), &program, &endpoint, &start);
    process.stdout(Stdio::null()).stderr(Stdio::null());
    let _process = Started(process.spawn().expect("it starts"));
    let program = program.to_str().expect("UTF-8");
    until("the new member serves", || {
        run(program, &client, &["put", "k", "v"], "").status.success()
    });
    until("all members have started", || {
        let list = run(program, &client, &["member", "list"], "");
        String::from_utf8_lossy(&list.stdout).matches(", started,").count() == 2
    });
}
