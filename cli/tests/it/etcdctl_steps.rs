//! What is tried with every `etcdctl`.

/// Arguments, standard input, and what is printed; behind a `!` why it fails. `$NAME` is what an earlier
/// step came to.
pub(crate) type Step = (&'static str, &'static str, &'static str);

/// What needs no users.
pub(crate) const STEPS: &[Step] = &[
    ("version", "", "etcdctl version: 3."),
    ("put k v", "", "OK"),
    ("put k w --prev-kv", "", "OK\nk\nv"),
    ("put from-stdin", "piped", "OK"),
    ("get k", "", "k\nw"),
    ("get k -w json", "", "\"kvs\":[{\"key\":\"aw==\""),
    ("get k -w fields", "", "\"Version\" : 2"),
    ("get k -w protobuf", "", "k"),
    ("get from-stdin --print-value-only", "", "piped"),
    ("get k --rev=2 --consistency=s", "", "k\nv"),
    ("get k --prefix --keys-only -w fields", "", "\"Count\" : 1"),
    ("txn", "value(\"k\") = \"w\"\n\nput t 1\nget k\n\nput t 0\n\n", "SUCCESS\n\nOK\n\nk\nw"),
    ("txn", "mod(\"k\") = \"1\"\n\nput t 1\n\nget t\n\n", "FAILURE\n\nt\n1"),
    ("del t --prev-kv", "", "1\nt\n1"),
    ("lease grant 600", "", "granted with TTL(600s)"),
    ("put leased v --lease=$LEASE", "", "OK"),
    ("put leased w --ignore-lease --prev-kv", "", "OK\nleased\nv"),
    ("put leased --ignore-value --lease=$LEASE", "", "OK"),
    ("put none --ignore-value", "", "!key not found"),
    ("put o/1 1", "", "OK"),
    ("put o/2 0", "", "OK"),
    ("put o/3 2", "", "OK"),
    ("get o/ --prefix --print-value-only --order=DESCEND --sort-by=VALUE", "", "2\n1\n0"),
    ("get o/ --prefix --keys-only --limit=2", "", "o/1\n\no/2"),
    ("get o/2 --from-key --keys-only --limit=2", "", "o/2\n\no/3"),
    ("get o/1 o/3 --print-value-only", "", "1\n0"),
    ("get o/1 --hex", "", "\\x6f\\x2f\\x31"),
    ("get o/1 --rev=1000000", "", "!required revision is a future revision"),
    ("txn --interactive", "create(\"o/1\") > \"0\"\n\nget o/3\n\n\n", "SUCCESS\n\no/3\n2"),
    ("del o/1", "", "1"),
    ("del o/3 --from-key --prev-kv", "", "1\no/3\n2"),
    ("del o/ --prefix", "", "1"),
    ("lease timetolive $LEASE --keys", "", "attached keys([leased])"),
    ("lease list", "", "$LEASE"),
    ("lease keep-alive --once $LEASE", "", "keepalived with TTL(600)"),
    ("lease revoke $LEASE", "", "revoked"),
    ("lease revoke $LEASE", "", "!etcdserver: requested lease not found"),
    ("lock l echo held", "", "held"),
    ("compaction 2", "", "compacted revision 2"),
    ("compaction 1000000", "", "!mvcc: required revision is a future revision"),
    ("endpoint health", "", "is healthy"),
    ("endpoint health --cluster -w json", "", "\"health\":true"),
    ("endpoint status -w table", "", "IS LEADER"),
    ("endpoint status --cluster", "", ", true, false, "),
    ("endpoint hashkv --cluster", "", ", "),
    ("defrag", "", "Finished defragmenting etcd member"),
    ("alarm list", "", ""),
    ("alarm disarm", "", ""),
    ("member list", "", ", started, "),
    ("member list -w table", "", "PEER ADDRS"),
    ("member add n9 --learner --peer-urls=http://127.0.0.1:1", "", "ETCD_INITIAL_CLUSTER_STATE"),
    ("member list", "", "$MEMBER, unstarted, "),
    ("member update $MEMBER --peer-urls=http://127.0.0.1:2", "", "updated in cluster"),
    ("member promote $MEMBER", "", "!which is in sync with leader"),
    ("member remove $MEMBER", "", "removed from cluster"),
    ("member remove $MEMBER", "", "!etcdserver: member not found"),
    ("move-leader $FOLLOWER", "", "Leadership transferred from"),
    ("snapshot save $DIR/saved --endpoints=$ENDPOINT", "", "Snapshot saved at"),
];

/// Users and roles; `auth enable` makes the user of the later steps necessary.
pub(crate) const ACCESS: &[Step] = &[
    ("role add r", "", "Role r created"),
    ("role grant-permission r readwrite k --prefix", "", "Role r updated"),
    ("role get r", "", "[k, l) (prefix k)"),
    ("role list", "", "r"),
    ("user add ann:secret", "", "User ann created"),
    ("user add bob --interactive=false", "other\n", "User bob created"),
    ("user grant-role ann r", "", "Role r is granted to user ann"),
    ("user get ann", "", "Roles: r"),
    ("user get ann --detail", "", "[k, l) (prefix k)"),
    ("user list", "", "ann\nbob"),
    ("user passwd ann --interactive=false", "new\n", "Password updated"),
    ("put k1 x --user=ann:new", "", "OK"),
    ("get k1 --user=ann:new", "", "k1\nx"),
    ("put z x --user=ann:new", "", "!etcdserver: permission denied"),
    ("user list --user=ann:new", "", "!etcdserver: permission denied"),
    ("get k --user=ann:secret", "", "!authentication failed, invalid user ID or password"),
    ("get k --user=nobody:x", "", "!authentication failed, invalid user ID or password"),
    ("user revoke-role ann r", "", "Role r is revoked from user ann"),
    ("get k1 --user=ann:new", "", "!etcdserver: permission denied"),
    ("user delete ann", "", "User ann deleted"),
    ("user delete bob", "", "User bob deleted"),
    ("role revoke-permission r k --prefix", "", "is revoked from role r"),
    ("role delete r", "", "Role r deleted"),
    ("role get r", "", "!etcdserver: role name not found"),
    ("user delete root", "", "!etcdserver: invalid auth management"),
    ("auth status", "", "Authentication Status: true"),
];

/// What makes [`ROOT`] necessary.
pub(crate) const ENABLE: &[Step] = &[
    ("user add root:rootpw", "", "User root created"),
    ("user grant-role root root", "", "Role root is granted to user root"),
    ("auth enable", "", "Authentication Enabled"),
];

/// Tried in functions of their own below.
pub(crate) const FUNCTIONS: [&str; 3] = ["watch", "elect", "make-mirror"];
/// Tried in the long form.
pub(crate) const LONG: [&str; 2] = ["check perf", "check datascale"];
/// These ask no server; the last three read files of etcd's own form (`conclave snapshot` reads ours).
pub(crate) const OFFLINE: [&str; 8] = [
    "help",
    "completion bash",
    "completion fish",
    "completion powershell",
    "completion zsh",
    "migrate",
    "snapshot restore",
    "snapshot status",
];
