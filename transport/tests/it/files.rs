//! What is said about files that cannot be used, and what is read when they change.

use std::fs;
use std::path::PathBuf;

use conclave_transport::{Allowed, Certificate, Error, Pair, Policy, Server, Version};
use tempfile::TempDir;

use crate::authority::{Authority, Files, Wish, replace};

const H2: &[&[u8]] = &[b"h2"];

pub(crate) fn server(files: &Files) -> Server {
    Server {
        identity: Pair { cert: files.cert.clone(), key: files.key.clone() },
        trusted_ca: None,
        revocations: None,
        allowed: Allowed::default(),
        policy: Policy::default(),
        protocols: H2,
    }
}

fn refused(server: Server) -> String {
    server.follow().expect_err("must be refused").to_string()
}

#[test]
fn a_certificate_says_what_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let hosts = ["a.example", "*.b.example", "10.1.2.3", "::1"];
    let wish = Wish { common_name: "alice", hosts: &hosts, ..Wish::default() };
    let files = Authority::new("ca").issue(wish, dir.path(), "a");
    let pair = Pair { cert: files.cert, key: files.key };
    let certificate = pair.check().unwrap();
    assert_eq!(certificate.common_name.as_deref(), Some("alice"));
    assert_eq!(certificate.dns_names, ["a.example", "*.b.example"]);
    let addresses: Vec<String> = certificate.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.2.3", "::1"]);
    assert_eq!(certificate.not_after - certificate.not_before, 2 * 24 * 60 * 60);
    assert_eq!(Certificate::parse(b"x"), None);
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let ca = Authority::new("ca");
    let (a, b) =
        (ca.issue(Wish::default(), dir.path(), "a"), ca.issue(Wish::default(), dir.path(), "b"));
    let old = ca.issue(Wish { days: (-2, -1), ..Wish::default() }, dir.path(), "old");
    let early = ca.issue(Wish { days: (1, 2), ..Wish::default() }, dir.path(), "early");
    let noise = dir.path().join("noise.pem");
    fs::write(&noise, "noise").unwrap();
    let missing: PathBuf = dir.path().join("missing.pem");

    let with = |change: fn(&mut Server, PathBuf), path: &PathBuf| {
        let mut server = server(&a);
        server.trusted_ca = Some(a.cert.clone());
        change(&mut server, path.clone());
        refused(server)
    };
    for (text, parts) in [
        (refused(server(&old)), ["certificate file", "old.pem", "expired"]),
        (refused(server(&early)), ["certificate file", "early.pem", "is valid only in"]),
        (
            with(|s, p| s.identity.cert = p, &missing),
            ["certificate file", "missing.pem", "No such"],
        ),
        (with(|s, p| s.identity.cert = p, &noise), ["certificate file", "noise.pem", "no cert"]),
        (with(|s, p| s.identity.key = p, &noise), ["key file", "noise.pem", "no items"]),
        (with(|s, p| s.identity.key = p, &b.key), ["the key", "b-key.pem", "does not belong to"]),
        (with(|s, p| s.trusted_ca = Some(p), &missing), ["CA file", "missing.pem", "No such"]),
        (with(|s, p| s.trusted_ca = Some(p), &noise), ["CA file", "noise.pem", "no certificate"]),
        (with(|s, p| s.revocations = Some(p), &noise), ["revocation list", "noise.pem", ""]),
    ] {
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

#[test]
fn changed_files_are_read_and_broken_ones_change_nothing() {
    let dir = TempDir::new().unwrap();
    let ca = Authority::new("ca");
    let files = ca.issue(Wish { days: (-1, 3), ..Wish::default() }, dir.path(), "a");
    let followed = server(&files).follow().unwrap();
    let first = followed.current().not_after;
    assert!(followed.look().is_none(), "nothing has changed");

    ca.issue(Wish { days: (-1, 5), ..Wish::default() }, dir.path(), "a");
    followed.look().unwrap().unwrap();
    let second = followed.current().not_after;
    assert!(second > first);

    replace(&files.cert, "half a file");
    assert!(matches!(followed.look().unwrap(), Err(Error::Content { .. })));
    assert!(followed.look().is_none(), "the same breakage is told once");
    fs::remove_file(&files.cert).unwrap();
    assert!(matches!(followed.look().unwrap(), Err(Error::Read { .. })));
    assert_eq!(followed.current().not_after, second);

    ca.issue(Wish { days: (-1, 7), ..Wish::default() }, dir.path(), "a");
    followed.look().unwrap().unwrap();
    assert!(followed.current().not_after > second);
}

#[test]
fn policies_leave_something_to_negotiate() {
    let text = |min, max, ciphers: &[&str]| {
        Policy::new(min, max, ciphers).err().map(|error| error.to_string())
    };
    let (old, new) = (Some(Version::Tls12), Some(Version::Tls13));
    let good = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    assert_eq!(text(old, new, &[good]), None);
    assert_eq!(
        text(new, old, &[]).unwrap(),
        "min version (TLS1.3) is greater than max version (TLS1.2)"
    );
    assert_eq!(
        text(new, None, &[good]).unwrap(),
        "cipher suites cannot be configured when only TLS1.3 is enabled"
    );
    assert_eq!(text(None, None, &["NO"]).unwrap(), "unexpected TLS cipher suite \"NO\"");
    let weak = "TLS_RSA_WITH_AES_128_CBC_SHA";
    assert_eq!(Policy::new(None, None, &[weak, good]).unwrap().1, [weak]);
    assert!(text(None, old, &[weak]).unwrap().starts_with("none of the cipher suites"));
}

/// A revocation list that cannot be understood is refused with its name, and never a reason to panic.
#[test]
fn damaged_revocation_lists_are_refused_or_read() {
    let dir = TempDir::new().unwrap();
    let ca = Authority::new("ca");
    let files = ca.issue(Wish::default(), dir.path(), "a");
    let trusted_ca = ca.write(&dir.path().join("ca.pem"));
    let path = ca.revoke(&[7, 8, 9], &dir.path().join("crl.pem"));
    let whole = fs::read_to_string(&path).unwrap();
    let with = || Server {
        trusted_ca: Some(trusted_ca.clone()),
        revocations: Some(path.clone()),
        ..server(&files)
    };
    with().follow().unwrap();
    let mut refused = 0;
    for place in 0..whole.len() {
        let mut changed = whole.clone().into_bytes();
        changed[place] = if changed[place] == b'A' { b'z' } else { b'A' };
        fs::write(&path, &changed).unwrap();
        if let Err(error) = with().follow() {
            assert!(error.to_string().contains("crl.pem"), "{error}");
            refused += 1;
        }
        if place % 16 == 0 {
            fs::write(&path, &whole[..place]).unwrap();
            with().follow().unwrap_err();
        }
    }
    assert!(refused > 0, "damage is noticed");
}
