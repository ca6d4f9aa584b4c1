//! A name server for tests: it knows some SRV records, or the names of an address.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Host, port and priority of the servers of a service.
pub type Records = Vec<(&'static str, u16, u16)>;

const SRV: u8 = 33;
const PTR: u8 = 12;

/// Answers by UDP for as long as the test process runs; by TCP instead if `is_cut_off`. Other names
/// than `_service._tcp.domain` do not exist.
pub fn serve(service: &str, domain: &str, records: Records, is_cut_off: bool) -> SocketAddr {
    let record = |(host, port, priority): &(&str, u16, u16)| {
        let numbers = [priority.to_be_bytes(), [0, 0], port.to_be_bytes()].concat();
        [numbers, encoded(host)].concat()
    };
    let records = records.iter().map(record).collect();
    let zone = Zone { name: format!("_{service}._tcp.{domain}"), kind: SRV, records };
    answer_for(zone, is_cut_off)
}

/// The same for the names of an address, which is told as it is looked up, e.g. `1.0.0.127.in-addr.arpa`.
pub fn serve_names(address: &str, names: &[&str]) -> SocketAddr {
    let records = names.iter().map(|name| encoded(name)).collect();
    answer_for(Zone { name: address.to_owned(), kind: PTR, records }, false)
}

/// The one name that exists, and its records.
#[derive(Clone)]
struct Zone {
    name: String,
    kind: u8,
    records: Vec<Vec<u8>>,
}

fn answer_for(zone: Zone, is_cut_off: bool) -> SocketAddr {
    let (socket, listener) = bind();
    let address = socket.local_addr().unwrap();
    let zone_by_tcp = zone.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let answer = if is_cut_off {
                [&bytes[..2], &[0x82, 0], &bytes[4..count]].concat()
            } else {
                answer(&bytes[..count], &zone)
            };
            socket.send_to(&answer, from).unwrap();
        }
    });
    if is_cut_off {
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut count = [0; 2];
                stream.read_exact(&mut count).unwrap();
                let mut bytes = vec![0; usize::from(u16::from_be_bytes(count))];
                stream.read_exact(&mut bytes).unwrap();
                let answer = answer(&bytes, &zone_by_tcp);
                let count = u16::try_from(answer.len()).unwrap().to_be_bytes();
                stream.write_all(&[&count, answer.as_slice()].concat()).unwrap();
            }
        });
    }
    address
}

/// A port that is free for both.
fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()) {
            return (socket, listener);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let count = u8::try_from(label.len()).unwrap();
        [&[count], label.as_bytes()].concat()
    });
    labels.chain([0]).collect()
}

fn answer(question: &[u8], zone: &Zone) -> Vec<u8> {
    let asked = &question[12..question.len() - 4];
    if asked != encoded(&zone.name) {
        return [&question[..2], &[0x81, 0x83], &question[4..]].concat();
    }
    let count = u8::try_from(zone.records.len()).unwrap();
    let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
    answer.extend_from_slice(&question[12..]);
    for record in &zone.records {
        let bytes = u16::try_from(record.len()).unwrap().to_be_bytes();
        // A reference to the name of the question; IN, a minute.
        let head = [0xc0, 12, 0, zone.kind, 0, 1, 0, 0, 0, 60, bytes[0], bytes[1]];
        answer.extend_from_slice(&[&head, record.as_slice()].concat());
    }
    answer
}
