//! SRV records and the names of addresses from a name server.

use std::net::UdpSocket;

use conclave_transport::dns::{Srv, names, srv};

use crate::name_server::{serve, serve_names};

fn record(host: &str, port: u16, priority: u16) -> Srv {
    Srv { host: host.to_owned(), port, priority, weight: 0 }
}

#[test]
fn servers_are_found_in_their_order() {
    let records = vec![("b.example", 2, 20), ("a.example", 1, 10)];
    let expected = [record("a.example", 1, 10), record("b.example", 2, 20)];
    for is_cut_off in [false, true] {
        let server = serve("etcd-server", "example.com", records.clone(), is_cut_off);
        assert_eq!(srv("etcd-server", "example.com.", Some(server)).unwrap(), expected);
        assert_eq!(srv("etcd-client", "example.com", Some(server)).unwrap(), []);
    }
}

#[test]
fn names_of_an_address_are_found() {
    let known = ["a.example.com", "b.example.com"];
    let server = serve_names("3.2.1.10.in-addr.arpa", &known);
    assert_eq!(names([10, 1, 2, 3].into(), Some(server)).unwrap(), known);
    assert!(names([10, 1, 2, 4].into(), Some(server)).unwrap().is_empty());
}

#[test]
fn broken_answers_are_errors() {
    for broken in [&[][..], &[0; 12], &[0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0xc0, 12]] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 512];
            while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                let answer = [&bytes[..2], broken].concat();
                socket.send_to(&answer, from).unwrap();
            }
        });
        let error = srv("etcd-server", "example.com", Some(server)).unwrap_err();
        assert!(error.to_string().starts_with("cannot look up _etcd-server._tcp.example.com"));
    }
    assert!(srv("etcd-server", "a..b", None).is_err());
}
