//! A name server for tests: it knows some SRV records.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Host, port and priority of the servers of a service.
pub type Records = Vec<(&'static str, u16, u16)>;

/// Answers by UDP for as long as the test process runs; by TCP instead if `is_cut_off`. Other names
/// than `_service._tcp.domain` do not exist.
pub fn serve(service: &str, domain: &str, records: Records, is_cut_off: bool) -> SocketAddr {
    let (socket, listener) = bind();
    let address = socket.local_addr().unwrap();
    let name = format!("_{service}._tcp.{domain}");
    let (name_by_tcp, records_by_tcp) = (name.clone(), records.clone());
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let answer = if is_cut_off {
                [&bytes[..2], &[0x82, 0], &bytes[4..count]].concat()
            } else {
                answer(&bytes[..count], &name, &records)
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
                let answer = answer(&bytes, &name_by_tcp, &records_by_tcp);
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

fn answer(question: &[u8], name: &str, records: &Records) -> Vec<u8> {
    let asked = &question[12..question.len() - 4];
    if asked != encoded(name) {
        return [&question[..2], &[0x81, 0x83], &question[4..]].concat();
    }
    let count = u8::try_from(records.len()).unwrap();
    let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
    answer.extend_from_slice(&question[12..]);
    for (host, port, priority) in records {
        let host = encoded(host);
        let bytes = u16::try_from(6 + host.len()).unwrap().to_be_bytes();
        // A reference to the name of the question; SRV, IN, a minute.
        answer.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60, bytes[0], bytes[1]]);
        answer.extend_from_slice(&[priority.to_be_bytes(), [0, 0], port.to_be_bytes()].concat());
        answer.extend_from_slice(&host);
    }
    answer
}
