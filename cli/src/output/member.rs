//! The members of the cluster, and membership changes.

use conclave_client::pb::{
    Member, MemberAddResponse, MemberListResponse, MemberRemoveResponse, ResponseHeader,
};
use prost::Message as _;

use super::{Answer, Style, Table, go::quote, header_fields, header_json, json::Writer, line};

/// The members of the cluster.
pub(crate) struct Members(pub(crate) MemberListResponse);

fn member_cells(member: &Member) -> Vec<String> {
    // A member publishes its name when it first starts.
    let status = if member.name.is_empty() { "unstarted" } else { "started" };
    vec![
        format!("{:x}", member.id),
        status.to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

impl Answer for Members {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for member in &self.0.members {
            line!(out, "{}", member_cells(member).join(", "));
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            if let Some(header) = &self.0.header {
                out.name("header");
                out.object(|out| {
                    out.id("cluster_id", header.cluster_id);
                    out.id("member_id", header.member_id);
                    out.signed("revision", header.revision);
                    out.unsigned("raft_term", header.raft_term);
                });
            }
            if !self.0.members.is_empty() {
                out.name("members");
                out.array(&self.0.members, |out, member| {
                    out.object(|out| {
                        out.id("ID", member.id);
                        described(out, member);
                    });
                });
            }
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.0.header.as_ref(), out);
        for member in &self.0.members {
            line!(out, "\"ID\" : {}", member.id);
            line!(out, "\"Name\" : {}", quote(member.name.as_bytes()));
            for url in &member.peer_ur_ls {
                line!(out, "\"PeerURL\" : {}", quote(url.as_bytes()));
            }
            for url in &member.client_ur_ls {
                line!(out, "\"ClientURL\" : {}", quote(url.as_bytes()));
            }
            line!(out, "\"IsLearner\" : {}", member.is_learner);
            line!(out, "");
        }
    }

    fn table(&self) -> Option<Table> {
        let mut table =
            Table::new(&["id", "status", "name", "peer addrs", "client addrs", "is learner"]);
        self.0.members.iter().for_each(|member| table.row(member_cells(member)));
        Some(table)
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }
}

fn member_json(out: &mut Writer, member: &Member) {
    out.object(|out| {
        out.unsigned("ID", member.id);
        described(out, member);
    });
}

/// All fields of a member but its id.
fn described(out: &mut Writer, member: &Member) {
    out.text("name", &member.name);
    out.texts("peerURLs", &member.peer_ur_ls);
    out.texts("clientURLs", &member.client_ur_ls);
    out.boolean("isLearner", member.is_learner);
}

/// A membership change that was made.
pub(crate) struct Changed {
    pub(crate) header: Option<ResponseHeader>,
    pub(crate) id: u64,
    /// What happened to the member, in etcdctl's words: `added to`, `removed from`, ...
    pub(crate) verb: &'static str,
    /// The member that was added.
    pub(crate) added: Option<Member>,
    /// All members after the change.
    pub(crate) members: Vec<Member>,
}

impl Answer for Changed {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        let cluster = self.header.as_ref().map_or(0, |header| header.cluster_id);
        line!(out, "Member {:16x} {} cluster {cluster:16x}", self.id, self.verb);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            if let Some(added) = &self.added {
                out.name("member");
                member_json(out, added);
            }
            out.name("members");
            out.array(&self.members, member_json);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        line!(out, "\"ID\" : {}", self.id);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        let (header, members) = (self.header, self.members.clone());
        Some(match self.added.clone() {
            Some(added) => {
                MemberAddResponse { header, member: Some(added), members }.encode_to_vec()
            }
            // The answers to all other changes have the same message fields.
            None => MemberRemoveResponse { header, members }.encode_to_vec(),
        })
    }
}
