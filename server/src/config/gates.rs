//! etcd's feature gates: `--feature-gates A=true,B=false`, and the flags they replaced in etcd 3.6.
//!
//! Most gates switch details of etcd's implementation that work differently here. Such a gate is
//! accepted, with a warning if it asks for something that is not the case.

use std::collections::BTreeMap;

use super::flags::Raw;
use super::resolve::invalid;
use super::{ConfigError, go};

const FLAG: &str = "feature-gates";
/// Compares this member's data with that of the others when it starts.
const INITIAL_CHECK: &str = "InitialCorruptCheck";

/// etcd's maturity stage of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

/// One gate.
#[derive(Clone, Copy, Debug)]
struct Gate {
    name: &'static str,
    stage: Stage,
    /// The flag that the gate replaced.
    flag: Option<&'static str>,
    here: Here,
}

/// What a gate does in this server.
#[derive(Clone, Copy, Debug)]
enum Here {
    /// The gate is honoured; the default is off.
    Switches,
    /// No effect: the feature is always on or always off, for this reason.
    Is(bool, &'static str),
}

const LEASES: &str = "a new leader gives every lease its whole TTL again";

/// All gates of etcd 3.7, and those that were removed with 3.6.
const GATES: [Gate; 9] = [
    Gate {
        name: "CompactHashCheck",
        stage: Stage::Alpha,
        flag: Some("experimental-compact-hash-check-enabled"),
        here: Here::Is(true, "members are compared at every compaction"),
    },
    Gate {
        name: "FastLeaseKeepAlive",
        stage: Stage::Beta,
        flag: None,
        here: Here::Is(true, "renewing a lease asks nothing but the leader's memory"),
    },
    Gate {
        name: INITIAL_CHECK,
        stage: Stage::Alpha,
        flag: Some("experimental-initial-corrupt-check"),
        here: Here::Switches,
    },
    Gate {
        name: "LeaseCheckpoint",
        stage: Stage::Alpha,
        flag: Some("experimental-enable-lease-checkpoint"),
        here: Here::Is(false, LEASES),
    },
    Gate {
        name: "LeaseCheckpointPersist",
        stage: Stage::Alpha,
        flag: Some("experimental-enable-lease-checkpoint-persist"),
        here: Here::Is(false, LEASES),
    },
    Gate {
        name: "PriorityRequest",
        stage: Stage::Alpha,
        flag: None,
        here: Here::Is(false, "what is in flight is bounded for all requests alike"),
    },
    Gate {
        name: "SetMemberLocalAddr",
        stage: Stage::Alpha,
        flag: Some("experimental-set-member-localaddr"),
        here: Here::Is(false, "the system chooses the address that other members are called from"),
    },
    Gate {
        name: "StopGRPCServiceOnDefrag",
        stage: Stage::Alpha,
        flag: Some("experimental-stop-grpc-service-on-defrag"),
        here: Here::Is(false, "a member that defragments goes on serving"),
    },
    Gate {
        name: "TxnModeWriteWithSharedBuffer",
        stage: Stage::Beta,
        flag: Some("experimental-txn-mode-write-with-shared-buffer"),
        here: Here::Is(true, "there is no bbolt backend whose buffer could be copied"),
    },
];

/// The state of the gates that have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// This member's data is compared with that of the others when it starts.
    pub initial_check: bool,
}

impl Gates {
    /// Every gate: its name, its stage in etcd, and whether its feature is on here.
    pub(crate) fn all(self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        GATES.iter().map(move |gate| {
            let stage = match gate.stage {
                Stage::Alpha => "ALPHA",
                Stage::Beta => "BETA",
            };
            let is_on = match gate.here {
                Here::Switches => self.initial_check,
                Here::Is(is_on, _) => is_on,
            };
            (gate.name, stage, is_on)
        })
    }
}

/// Reads the feature gates and the `experimental-` flags they replaced; warns about those without
/// effect.
pub(super) fn settings(raw: &mut Raw) -> Result<Gates, ConfigError> {
    let mut asked = parse(raw.text(FLAG).unwrap_or_default())?;
    for gate in &GATES {
        let Some(flag) = gate.flag.filter(|flag| raw.text(flag).is_some()) else { continue };
        let is_on = raw.switch(flag)?;
        if asked.insert(gate.name, is_on).is_some() {
            return Err(ConfigError::Rule(format!(
                "--{flag} and --{FLAG}={} are both given; keep the gate",
                gate.name
            )));
        }
    }
    for gate in &GATES {
        if let (Here::Is(is_so, why), Some(&is_on)) = (gate.here, asked.get(gate.name))
            && is_on != is_so
        {
            let name = gate.name;
            raw.warnings.push(format!("feature gate {name}={is_on} has no effect: {why}"));
        }
    }
    Ok(Gates { initial_check: asked.get(INITIAL_CHECK).copied().unwrap_or(false) })
}

/// Parses `A=true,B=false`; `AllAlpha` and `AllBeta` set the gates that are not named.
fn parse(text: &str) -> Result<BTreeMap<&'static str, bool>, ConfigError> {
    let mut named = BTreeMap::new();
    let mut stages = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let refuse = |reason: String| Err(invalid(FLAG, text, &reason));
        let Some((name, value)) = item.split_once('=') else {
            return refuse(format!("missing bool value for {item}"));
        };
        let Some(is_on) = go::boolean(value.trim()) else {
            return refuse(format!("{name} must be true or false"));
        };
        match name.trim() {
            "AllAlpha" => stages.push((Stage::Alpha, is_on)),
            "AllBeta" => stages.push((Stage::Beta, is_on)),
            name => match GATES.iter().find(|gate| gate.name == name) {
                Some(gate) => {
                    named.insert(gate.name, is_on);
                }
                None => return refuse(format!("unrecognized feature gate: {name}")),
            },
        }
    }
    for (stage, is_on) in stages {
        for gate in GATES.iter().filter(|gate| gate.stage == stage) {
            named.entry(gate.name).or_insert(is_on);
        }
    }
    Ok(named)
}
