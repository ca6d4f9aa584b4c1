//! The small buckets of an etcd database: all except the keys.
//!
//! | bucket | key -> value |
//! |---|---|
//! | `lease` | id, big endian -> id and TTL |
//! | `auth` | `authEnabled`, `authRevision` |
//! | `authUsers`, `authRoles` | name -> the user with its roles, the role with its permissions |
//! | `members` | id in hexadecimal -> JSON |
//! | `members_removed` | id in hexadecimal -> `removed` |
//! | `alarm` | the alarm -> nothing |
//! | `meta` | last applied index and term, compacted revisions |
//! | `cluster` | nothing: a restored etcd negotiates a version with its members |

use std::collections::BTreeMap;

use conclave_proto::authpb;
use conclave_proto::etcdserverpb::AlarmMember;
use conclave_proto::internal::BackupMeta;
use conclave_state_machine::auth;
use conclave_state_machine::command::{MemberRecord, Permission};
use conclave_state_machine::head::Head;
use conclave_state_machine::read::Read;
use conclave_state_machine::response::Halt;
use conclave_state_machine::revision::Revision;
use conclave_state_machine::{leases, members};
use prost::Message as _;

use super::etcd::{self, StoredLease, stored_key};

/// The elements of a bucket, in bbolt's order.
type Elements = BTreeMap<Vec<u8>, Vec<u8>>;

/// Returns all small buckets by name.
pub(super) fn small(
    rows: &impl Read,
    head: &Head,
    meta: &BackupMeta,
) -> Result<Vec<(&'static str, Elements)>, Halt> {
    let members = members::all(rows)?;
    let members = members.iter().map(|member| (hexadecimal(member.id), json(member)));
    let removed = members::removed(rows)?;
    let removed = removed.iter().map(|id| (hexadecimal(*id), b"removed".to_vec()));
    Ok(vec![
        (etcd::LEASES, stored_leases(rows)?),
        (etcd::AUTH, stored_auth(head)),
        (etcd::USERS, stored_users(rows)?),
        (etcd::ROLES, stored_roles(rows)?),
        ("members", members.collect()),
        ("members_removed", removed.collect()),
        (etcd::ALARMS, stored_alarms(head)),
        (etcd::META, stored_meta(head, meta)),
        ("cluster", Elements::new()),
    ])
}

fn stored_leases(rows: &impl Read) -> Result<Elements, Halt> {
    let mut elements = Elements::new();
    leases::grants(rows, &mut |id, ttl, _| {
        let lease = StoredLease { id, ttl };
        elements.insert(id.to_be_bytes().to_vec(), lease.encode_to_vec());
    })?;
    Ok(elements)
}

fn stored_auth(head: &Head) -> Elements {
    let enabled = vec![u8::from(head.auth.enabled)];
    let revision = head.auth.revision.to_be_bytes().to_vec();
    let elements = [(etcd::AUTH_ENABLED, enabled), (etcd::AUTH_REVISION, revision)];
    elements.map(|(key, value)| (key.into(), value)).into()
}

fn stored_users(rows: &impl Read) -> Result<Elements, Halt> {
    let mut elements = Elements::new();
    for name in auth::users(rows)? {
        let Some(user) = auth::user(rows, &name)? else { continue };
        let key = name.clone().into_bytes();
        let user = authpb::User {
            name: name.into(),
            password: user.password_hash,
            roles: user.roles,
            options: Some(authpb::UserAddOptions { no_password: user.no_password }),
        };
        elements.insert(key, user.encode_to_vec());
    }
    Ok(elements)
}

fn stored_roles(rows: &impl Read) -> Result<Elements, Halt> {
    let mut elements = Elements::new();
    for name in auth::roles(rows)? {
        let Some(role) = auth::role(rows, &name)? else { continue };
        let key = name.clone().into_bytes();
        let key_permission = role.permissions.into_iter().map(stored_permission).collect();
        let role = authpb::Role { name: name.into(), key_permission };
        elements.insert(key, role.encode_to_vec());
    }
    Ok(elements)
}

fn stored_permission(permission: Permission) -> authpb::Permission {
    let Permission { kind, key, range_end } = permission;
    authpb::Permission { perm_type: kind.number().into(), key, range_end }
}

fn stored_alarms(head: &Head) -> Elements {
    let stored = |(member_id, kind): &(u64, conclave_state_machine::command::AlarmKind)| {
        let alarm = AlarmMember { member_id: *member_id, alarm: kind.number().into() };
        (alarm.encode_to_vec(), Vec::new())
    };
    head.alarms.iter().map(stored).collect()
}

fn stored_meta(head: &Head, meta: &BackupMeta) -> Elements {
    let applied = meta.applied.unwrap_or_default();
    let mut elements = Elements::new();
    elements.insert("consistent_index".into(), applied.index.to_be_bytes().to_vec());
    elements.insert("term".into(), applied.term.to_be_bytes().to_vec());
    if head.compacted > 0 {
        let compacted = stored_key(Revision::first_of(head.compacted), false);
        elements.insert(etcd::COMPACTION_BEGUN.into(), compacted.clone());
        // If a compaction was begun but not finished, etcd deletes the rest when it starts.
        if !head.has_dead_rows() {
            elements.insert(etcd::COMPACTION_DONE.into(), compacted);
        }
    }
    elements
}

fn hexadecimal(id: u64) -> Vec<u8> {
    format!("{id:016x}").into_bytes()
}

/// JSON as etcd writes it: names and URLs are written unchanged, except for escapes that JSON
/// requires.
fn json(member: &MemberRecord) -> Vec<u8> {
    let list = |urls: &[String]| urls.iter().map(|url| quoted(url)).collect::<Vec<_>>().join(",");
    let MemberRecord { id, name, peer_urls, client_urls } = member;
    let (name, peers, clients) = (quoted(name), list(peer_urls), list(client_urls));
    let text = format!(
        "{{\"id\":{id},\"peerURLs\":[{peers}],\"name\":{name},\"clientURLs\":[{clients}]}}"
    );
    text.into_bytes()
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if u32::from(control) < 0x20 => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
