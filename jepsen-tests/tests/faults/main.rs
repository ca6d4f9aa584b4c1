//! Real nodes that lose their disk, their log, their process or their patience, and have to behave.
//!
//! Each test runs briefly here. `CONCLAVE_FAULTS=long` runs the whole of it, which only a release build of the
//! server (`CONCLAVE_BINARY`) does in good time:
//!
//! | test | here | long |
//! |---|---|---|
//! | `sync_kills` | a sample of the first 200 fdatasyncs | each of them, on new and on old directories |
//! | `disk_full` | the state's disk, the log's disk, the leader's, everybody's | the same |
//! | `disk_failure` | a leader's disk fails, a follower's becomes read-only; both of a member alone | each of both |
//! | `power_loss` | all members twice at once, one four times, a checked history of 8 s | thirty times, sixty times, two minutes |
//! | `damage` | flipped, torn and lost bytes of log and state | the same |
//! | `hostile` | some hundred connections | some thousand |
//! | `handshakes` | 10,000 that stop half way | the same |
//! | `many` | 10,000 watchers on one connection | the same |
//! | `leases` | 5,000 that expire together | 50,000, gone within two seconds |
//! | `leader_kills` | one | ten, writes back within two seconds |
//! | `total_kills` | all members twice at once | twenty times |
//! | `votes` | a member that hears nobody | the same |
//! | `partitions` | a leader that hears nobody, is not heard, does not hear; two members that do not hear each other | the same, longer |
//! | `hand_overs` | 60 of one lock, between holders of every kind, with kills and partitions | 1,000 |
//! | `protected` | puts with rights and TLS for half a second each | the same |
//! | `paused` | a holder that is stopped past its TTL | the same |
//! | `guards` | 100 of every kind come and go | 10,000 |
//! | `examples` | those of the client crate, on three nodes | the same |
//! | `writes` | three leaders killed or cut off under a client that counts | twenty |
//! | `rolling` | every member restarted in turn under writers | five times |
//! | `outage` | the cluster is away for 5 s | for a minute |

mod damage;
mod disk_failure;
mod disk_full;
mod disks;
mod examples;
mod guards;
mod hand_overs;
mod handshakes;
mod holder;
mod hostile;
mod leader_kills;
mod leases;
mod many;
mod outage;
mod partitions;
mod paused;
mod power_loss;
mod protected;
mod rolling;
mod support;
mod sync_kills;
mod total_kills;
mod votes;
mod writes;
