//! Looks up SRV records (RFC 2782), which list the servers of a domain, and PTR records, which give
//! an address' names.
//!
//! The standard library cannot ask the system's resolver for them, so this sends one question to a
//! name server itself: by UDP and, if the answer is truncated, by TCP. Blocking.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Timeout of one server for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How many times all servers are asked.
const ROUNDS: usize = 2;
/// As many servers as other resolvers ask.
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
const HEAD_BYTES: usize = 12;
const TYPE_PTR: u16 = 12;
const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;
/// Flag bits: answer, truncated, recursion desired; and the result code.
const ANSWER: u16 = 0x8000;
const TRUNCATED: u16 = 0x0200;
const RECURSION: u16 = 0x0100;
const RESULT: u16 = 0x000f;
const NO_SUCH_NAME: u16 = 3;

/// A server of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Its host name, without a trailing dot.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Servers with lower values come first.
    pub priority: u16,
    /// Among servers of equal priority, those with higher values come first.
    pub weight: u16,
}

/// The servers of `_service._tcp.domain`, sorted; none if the name does not exist. Asks `server`,
/// or those of `/etc/resolv.conf`.
///
/// # Errors
/// If no server gives a usable answer.
pub fn srv(service: &str, domain: &str, server: Option<SocketAddr>) -> io::Result<Vec<Srv>> {
    let name = format!("_{service}._tcp.{}", domain.trim_end_matches('.'));
    let mut found = look_up(&name, &SRV, server)?;
    found.sort_by_key(|srv| (srv.priority, u16::MAX - srv.weight));
    Ok(found)
}

/// The host names of an address, without trailing dots; none if its network does not publish any.
/// Asks `server`, or those of `/etc/resolv.conf`.
///
/// # Errors
/// If no server gives a usable answer.
pub fn names(address: IpAddr, server: Option<SocketAddr>) -> io::Result<Vec<String>> {
    look_up(&reversed(address), &PTR, server)
}

/// The domain name of an address' PTR records.
fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev();
            let digits = digits.map(|byte| format!("{:x}.{:x}.", byte & 0xf, byte >> 4));
            format!("{}ip6.arpa", digits.collect::<String>())
        }
    }
}

/// A record type.
struct Kind<T> {
    number: u16,
    /// Decodes the record at an offset.
    read: fn(&Answer<'_>, usize) -> Option<T>,
}

const SRV: Kind<Srv> = Kind {
    number: TYPE_SRV,
    read: |answer, at| {
        Some(Srv {
            priority: answer.number(at)?,
            weight: answer.number(at + 2)?,
            port: answer.number(at + 4)?,
            host: answer.name(at + 6)?.0,
        })
    },
};

const PTR: Kind<String> =
    Kind { number: TYPE_PTR, read: |answer, at| answer.name(at).map(|(name, _)| name) };

/// Looks up the records of a name.
fn look_up<T>(name: &str, kind: &Kind<T>, server: Option<SocketAddr>) -> io::Result<Vec<T>> {
    let question = question(name, kind.number)?;
    let servers = server.map_or_else(servers, |server| vec![server]);
    let mut last = io::Error::other("no name server is known");
    for _ in 0..ROUNDS {
        for server in &servers {
            match ask(*server, &question, kind) {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
    }
    Err(io::Error::new(last.kind(), format!("cannot look up {name}: {last}")))
}

/// The system's name servers.
fn servers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, PORT))
        .take(SERVERS_MAX)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

fn question(name: &str, kind: u16) -> io::Result<Vec<u8>> {
    let id = RandomState::new().build_hasher().finish().to_be_bytes();
    let mut message = vec![id[0], id[1]];
    message.extend_from_slice(&RECURSION.to_be_bytes());
    // One question, nothing else.
    message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let bytes = u8::try_from(label.len()).unwrap_or(u8::MAX);
        if label.is_empty() || usize::from(bytes) > LABEL_BYTES_MAX || name.len() > NAME_BYTES_MAX {
            return Err(io::Error::other(format!("{name:?} is not a domain")));
        }
        message.push(bytes);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    Ok(message)
}

fn ask<T>(server: SocketAddr, question: &[u8], kind: &Kind<T>) -> io::Result<Vec<T>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // Connected, so that datagrams from other senders are not received.
    socket.connect(server)?;
    socket.send(question)?;
    let mut bytes = [0; 4096];
    let count = socket.recv(&mut bytes)?;
    match Answer(&bytes[..count]).read(question, kind)? {
        Some(found) => Ok(found),
        None => ask_by_tcp(server, question, kind),
    }
}

fn ask_by_tcp<T>(server: SocketAddr, question: &[u8], kind: &Kind<T>) -> io::Result<Vec<T>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let count = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&count.to_be_bytes(), question].concat())?;
    let mut count = [0; 2];
    stream.read_exact(&mut count)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(count))];
    stream.read_exact(&mut bytes)?;
    Answer(&bytes).read(question, kind)?.ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed answer")
}

/// A received message.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    /// The records; `None` if the answer is truncated.
    fn read<T>(&self, question: &[u8], kind: &Kind<T>) -> io::Result<Option<Vec<T>>> {
        let flags = self.number(2).ok_or_else(malformed)?;
        if self.0.get(..2) != question.get(..2) || flags & ANSWER == 0 {
            return Err(malformed());
        }
        if flags & TRUNCATED != 0 {
            return Ok(None);
        }
        match flags & RESULT {
            0 => self.records(kind).map(Some).ok_or_else(malformed),
            NO_SUCH_NAME => Ok(Some(Vec::new())),
            other => Err(io::Error::other(format!("the name server answers with code {other}"))),
        }
    }

    fn number(&self, at: usize) -> Option<u16> {
        let bytes = self.0.get(at..at.checked_add(2)?)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn records<T>(&self, kind: &Kind<T>) -> Option<Vec<T>> {
        let (questions, answers) = (self.number(4)?, self.number(6)?);
        let mut at = HEAD_BYTES;
        for _ in 0..questions {
            at = self.name(at)?.1 + 4;
        }
        let mut found = Vec::new();
        for _ in 0..answers {
            // Name, type, class, four bytes of time to live, length.
            let begin = self.name(at)?.1;
            let data = begin + 10;
            if self.number(begin)? == kind.number && self.number(begin + 2)? == CLASS_IN {
                found.push((kind.read)(self, data)?);
            }
            at = data + usize::from(self.number(begin + 8)?);
        }
        Some(found)
    }

    /// The name at an offset, and the offset after it.
    fn name(&self, at: usize) -> Option<(String, usize)> {
        let mut name = String::new();
        let (mut at, mut after) = (at, None);
        // Each iteration reads a label or follows a compression pointer; a valid name has at most
        // this many of both.
        for _ in 0..NAME_BYTES_MAX {
            match usize::from(*self.0.get(at)?) {
                0 => return Some((name, after.unwrap_or(at + 1))),
                bytes if bytes <= LABEL_BYTES_MAX => {
                    let label = self.0.get(at + 1..at + 1 + bytes)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.push_str(std::str::from_utf8(label).ok()?);
                    at += 1 + bytes;
                }
                bytes if bytes >= 0xc0 => {
                    after = after.or(Some(at + 2));
                    at = usize::from(self.number(at)? & 0x3fff);
                }
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_looked_up_backwards() {
        let name = |address: &str| reversed(address.parse().expect("an address"));
        assert_eq!(name("10.1.2.3"), "3.2.1.10.in-addr.arpa");
        let zeros = "0.".repeat(20);
        assert_eq!(name("2001:db8::4f"), format!("f.4.0.0.{zeros}8.b.d.0.1.0.0.2.ip6.arpa"));
    }
}
