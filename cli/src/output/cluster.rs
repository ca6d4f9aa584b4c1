//! Endpoints, alarms and the transfer of leadership.

use std::time::Duration;

use conclave_client::pb::{
    AlarmMember, AlarmResponse, AlarmType, DowngradeResponse, HashKvResponse, MoveLeaderResponse,
    StatusResponse,
};
use prost::Message as _;

use super::{
    Answer, Style, Table, complain,
    go::{bytes, duration, quote},
    header_fields, header_json,
    json::Writer,
    line,
};

/// Whether one endpoint serves.
pub(crate) struct Health {
    pub(crate) endpoint: String,
    pub(crate) took: Duration,
    /// Empty if it serves.
    pub(crate) error: String,
}

/// Which endpoints serve.
pub(crate) struct Healths(pub(crate) Vec<Health>);

impl Answer for Healths {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for Health { endpoint, took, error } in &self.0 {
            if error.is_empty() {
                let took = duration(*took);
                line!(out, "{endpoint} is healthy: successfully committed proposal: took = {took}");
            } else {
                complain(&format!("{endpoint} is unhealthy: failed to commit proposal: {error}"));
            }
        }
    }

    fn json(&self, out: &mut Writer) {
        out.array(&self.0, |out, health| {
            out.object(|out| {
                out.text("endpoint", &health.endpoint);
                out.name("health");
                out.raw(if health.error.is_empty() { "true" } else { "false" });
                out.text("took", &duration(health.took));
                out.text("error", &health.error);
            });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        for health in &self.0 {
            line!(out, "\"Endpoint\" : {}", quote(health.endpoint.as_bytes()));
            line!(out, "\"Health\" : {}", health.error.is_empty());
            line!(out, "\"Took\" : {}", duration(health.took));
            line!(out, "\"Error\" : {}", health.error);
            line!(out, "");
        }
    }

    fn table(&self) -> Option<Table> {
        let mut table = Table::new(&["endpoint", "health", "took", "error"]);
        for health in &self.0 {
            table.row(vec![
                health.endpoint.clone(),
                health.error.is_empty().to_string(),
                duration(health.took),
                health.error.clone(),
            ]);
        }
        Some(table)
    }
}

/// The state of some endpoints.
pub(crate) struct Statuses(pub(crate) Vec<(String, StatusResponse)>);

fn status_cells(endpoint: &str, status: &StatusResponse) -> Vec<String> {
    let member = status.header.as_ref().map_or(0, |header| header.member_id);
    vec![
        endpoint.to_owned(),
        format!("{member:x}"),
        status.version.clone(),
        bytes(u64::try_from(status.db_size).unwrap_or(0)),
        (status.leader == member).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
    ]
}

impl Answer for Statuses {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for (endpoint, status) in &self.0 {
            line!(out, "{}", status_cells(endpoint, status).join(", "));
        }
    }

    fn json(&self, out: &mut Writer) {
        out.array(&self.0, |out, (endpoint, status)| {
            out.object(|out| {
                out.text("Endpoint", endpoint);
                out.name("Status");
                out.object(|out| status_json(status, out));
            });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        for (endpoint, status) in &self.0 {
            header_fields(status.header.as_ref(), out);
            line!(out, "\"Version\" : {}", quote(status.version.as_bytes()));
            line!(out, "\"DBSize\" : {}", status.db_size);
            line!(out, "\"Leader\" : {}", status.leader);
            line!(out, "\"IsLearner\" : {}", status.is_learner);
            line!(out, "\"RaftIndex\" : {}", status.raft_index);
            line!(out, "\"RaftTerm\" : {}", status.raft_term);
            line!(out, "\"RaftAppliedIndex\" : {}", status.raft_applied_index);
            let errors: Vec<String> =
                status.errors.iter().map(|error| quote(error.as_bytes())).collect();
            line!(out, "\"Errors\" : [{}]", errors.join(" "));
            line!(out, "\"Endpoint\" : {}", quote(endpoint.as_bytes()));
            line!(out, "");
        }
    }

    fn table(&self) -> Option<Table> {
        let mut table = Table::new(&[
            "endpoint",
            "id",
            "version",
            "db size",
            "is leader",
            "is learner",
            "raft term",
            "raft index",
            "raft applied index",
            "errors",
        ]);
        for (endpoint, status) in &self.0 {
            table.row(status_cells(endpoint, status));
        }
        Some(table)
    }
}

fn status_json(status: &StatusResponse, out: &mut Writer) {
    header_json(status.header.as_ref(), out);
    out.text("version", &status.version);
    out.signed("dbSize", status.db_size);
    out.unsigned("leader", status.leader);
    out.unsigned("raftIndex", status.raft_index);
    out.unsigned("raftTerm", status.raft_term);
    out.unsigned("raftAppliedIndex", status.raft_applied_index);
    out.texts("errors", &status.errors);
    out.signed("dbSizeInUse", status.db_size_in_use);
    out.boolean("isLearner", status.is_learner);
    out.text("storageVersion", &status.storage_version);
    out.signed("dbSizeQuota", status.db_size_quota);
    if let Some(downgrade) = &status.downgrade_info {
        out.name("downgradeInfo");
        out.object(|out| {
            out.boolean("enabled", downgrade.enabled);
            out.text("targetVersion", &downgrade.target_version);
        });
    }
}

/// The hash of one endpoint's keys and history.
pub(crate) struct Hash {
    pub(crate) endpoint: String,
    pub(crate) response: HashKvResponse,
}

/// The hashes of some endpoints.
pub(crate) struct Hashes(pub(crate) Vec<Hash>);

impl Answer for Hashes {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for Hash { endpoint, response } in &self.0 {
            line!(out, "{endpoint}, {}", response.hash);
        }
    }

    fn json(&self, out: &mut Writer) {
        out.array(&self.0, |out, Hash { endpoint, response }| {
            out.object(|out| {
                out.text("Endpoint", endpoint);
                out.name("HashKV");
                out.object(|out| {
                    header_json(response.header.as_ref(), out);
                    out.unsigned("hash", response.hash.into());
                    out.signed("compact_revision", response.compact_revision);
                    out.signed("hash_revision", response.hash_revision);
                });
            });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        for Hash { endpoint, response } in &self.0 {
            header_fields(response.header.as_ref(), out);
            line!(out, "\"Endpoint\" : {}", quote(endpoint.as_bytes()));
            line!(out, "\"Hash\" : {}", response.hash);
            line!(out, "");
        }
    }

    fn table(&self) -> Option<Table> {
        let mut table = Table::new(&["endpoint", "hash"]);
        for Hash { endpoint, response } in &self.0 {
            table.row(vec![endpoint.clone(), response.hash.to_string()]);
        }
        Some(table)
    }
}

/// Active or cleared alarms.
pub(crate) struct Alarms(pub(crate) AlarmResponse);

fn alarm_name(alarm: &AlarmMember) -> &'static str {
    match alarm.alarm() {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    }
}

impl Answer for Alarms {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for alarm in &self.0.alarms {
            // The text form of the message: zero values left out, with a trailing space.
            if alarm.member_id != 0 {
                out.extend_from_slice(format!("memberID:{} ", alarm.member_id).as_bytes());
            }
            line!(out, "alarm:{} ", alarm_name(alarm));
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.0.header.as_ref(), out);
            if !self.0.alarms.is_empty() {
                out.name("alarms");
                out.array(&self.0.alarms, |out, alarm| {
                    out.object(|out| {
                        out.unsigned("memberID", alarm.member_id);
                        out.signed("alarm", alarm.alarm.into());
                    });
                });
            }
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.0.header.as_ref(), out);
        for alarm in &self.0.alarms {
            line!(out, "\"MemberID\" : {}", alarm.member_id);
            line!(out, "\"AlarmType\" : {}", alarm_name(alarm));
            line!(out, "");
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }
}

/// A transfer of leadership from one member to another.
pub(crate) struct Transfer {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Answer for Transfer {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "Leadership transferred from {:x} to {:x}", self.from, self.to);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|_| {});
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(None, out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(MoveLeaderResponse::default().encode_to_vec())
    }
}

/// The result of a downgrade request.
pub(crate) struct Downgraded {
    /// The requested action: `validate`, ...
    pub(crate) verb: &'static str,
    pub(crate) response: DowngradeResponse,
}

impl Answer for Downgraded {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        let Self { verb, response } = self;
        line!(out, "Downgrade {verb} success, cluster version {}", response.version);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.response.header.as_ref(), out);
            out.text("version", &self.response.version);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.response.header.as_ref(), out);
        line!(out, "\"Version\" : {}", quote(self.response.version.as_bytes()));
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }
}
